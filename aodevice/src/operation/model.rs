//! The device model of a guest, QEMU: whether it is there, that it has let go, and why it refused a device.
//!
//! A backend of QEMU's moves only as long as its process lives, so a wait for such a backend also ends with the
//! process. libxl does not look: where it takes QEMU to be going, it waits for 2 seconds and hopes. Here the
//! evidence is the process itself, held by a pidfd: a pid alone may be another process's by now. Which process it
//! is, the toolstack has recorded, and the process says so on its own command line.
//!
//! Nor is a backend at 6, or one that is gone, evidence that an image is closed: QEMU closes it last, up to a second
//! after it has removed the backend's nodes (seen with QEMU 7.2). Until then it may write and remove those nodes again,
//! also those of a new device in their place. So the descriptors of its process are looked at.
//!
//! Why QEMU does not take a device up stands in its log alone: the backend just stays where it is.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use xs_client::{Client, DomId, Error, Path};

use super::observe::shown;
use super::qmp::Connection;
use super::store::text;
use super::{Target, files, proc};
use crate::machine::Reached;
use crate::{BackendKind, Cause, Condition, DeviceId, Server, Toolstack, facts};

/// How often its log is looked at while a device is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// How often its descriptors are looked at.
const CLOSE_LOOK: Duration = Duration::from_millis(20);

/// How much of its log is looked at, in bytes: what it says of one device is a line.
const LOG_MAX: u64 = 64 << 10;

/// The number of the pid namespace that the kernel begins with (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// What the toolstack has recorded of a guest's device model. The guest cannot write there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    /// Its own word: `running` once it serves devices.
    state: Option<String>,
    pid: Option<u32>,
}

/// Whether a device model lives.
#[derive(Debug)]
pub(crate) enum Life {
    Alive(Process),
    Ended,
    /// Nothing is recorded, or its process cannot be seen from here.
    Unseen,
}

/// A process that cannot be mistaken for a later one of its number.
#[derive(Debug)]
pub(crate) struct Process {
    fd: OwnedFd,
    pid: u32,
}

impl Process {
    /// The process of this number.
    pub(crate) fn open(pid: u32) -> std::io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        Ok(Self { fd: pidfd_open(number, PidfdFlags::empty())?, pid })
    }

    /// The device model of a guest, if the process of this number is that.
    pub(crate) fn of_model(pid: u32, fe: DomId) -> Option<Self> {
        let process = Self::open(pid).ok()?;
        // Looked at once the number cannot change hands any more. That of a zombie is empty.
        let command = proc::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let domid = words.by_ref().skip_while(|word| *word != b"-xen-domid").nth(1)?;
        (domid == fe.to_string().as_bytes()).then_some(process)
    }

    /// The QEMU that says that it is a guest's.
    fn find(fe: DomId) -> Option<Self> {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| is_qemu(*pid)).find_map(|pid| Self::of_model(pid, fe))
    }

    // What replaces it came after Tokio 1.39; a pidfd keeps its number here.
    #[allow(deprecated)]
    pub(crate) async fn ended(&self) -> std::io::Result<()> {
        AsyncFd::new(self.fd.as_fd())?.readable().await.map(drop)
    }

    pub(crate) fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            // It has ended: that is seen next.
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

/// An image that a device model has open.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) process: Process,
    device: u64,
    inode: u64,
    /// Its descriptors of it: a drive that it emulates as well has a second one.
    opened: Vec<PathBuf>,
}

impl Image {
    /// The image of a device, if its model can be seen to have that open.
    pub(crate) async fn of(process: Process, target: &Target, limit: Duration) -> Option<Self> {
        let params = target.recorded().get("params");
        let (_, path) = params.filter(|_| target.id().be_kind == BackendKind::Qdisk)?.split_once(':')?;
        let path = PathBuf::from(path);
        let image = files::blocking(limit, move || fs::metadata(path).ok()).await??;
        let mut image = Self { process, device: image.dev(), inode: image.ino(), opened: Vec::new() };
        image.opened = image.descriptors();
        (!image.opened.is_empty()).then_some(image)
    }

    /// The process's descriptors of it. Of a process that has ended: none.
    fn descriptors(&self) -> Vec<PathBuf> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.process.pid)).into_iter().flatten();
        let mut descriptors: Vec<_> = descriptors.flatten().map(|entry| entry.path()).collect();
        descriptors.retain(|descriptor| self.is_at(descriptor));
        descriptors
    }

    fn is_at(&self, descriptor: &FilePath) -> bool {
        fs::metadata(descriptor).is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode)
    }

    /// Whether the process has it open as often as before. It has some dozens of descriptors, and whoever looks at
    /// all of them again and again takes the time from it in which it would close this one; so those that were found
    /// are looked at first.
    fn is_open(&self) -> bool {
        self.opened.iter().all(|descriptor| self.is_at(descriptor))
            || self.descriptors().len() >= self.opened.len()
    }

    /// Waits until it is closed, as far as it is the device's; false if it is not within `limit`.
    pub(crate) async fn closed(&self, limit: Duration) -> bool {
        let closed = async {
            while self.is_open() {
                sleep(CLOSE_LOOK).await;
            }
        };
        timeout(limit, closed).await.is_ok()
    }
}

impl Model {
    /// That of a device, if one serves it.
    pub(crate) async fn of(client: &Client, id: &DeviceId) -> Result<Option<Self>, Error> {
        match id.be_kind.server() {
            Server::Kernel | Server::Daemon => Ok(None),
            Server::DeviceModel => Self::look(client, (id.fe, id.be)).await.map(Some),
        }
    }

    pub(crate) async fn look(client: &Client, (fe, own): (DomId, DomId)) -> Result<Self, Error> {
        let nodes = [
            format!("/local/domain/{own}/device-model/{fe}/state"),
            format!("/local/domain/{fe}/image/device-model-pid"),
        ];
        let nodes = nodes.map(Path::new).into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut seen = client.read_many(&nodes).await?.into_iter().map(text);
        let (state, pid) = (seen.next().flatten(), seen.next().flatten());
        Ok(Self { state, pid: pid.and_then(|pid| pid.parse().ok()) })
    }

    pub(crate) fn life(&self, fe: DomId) -> Life {
        match self.pid.map(|pid| Process::of_model(pid, fe)) {
            Some(Some(process)) => Life::Alive(process),
            Some(None) if sees_all_processes() => Life::Ended,
            _ => Life::Unseen,
        }
    }

    /// The same where its guest's home is gone, and its pid with that: by looking at all processes.
    pub(crate) fn life_without_home(&self, fe: DomId) -> Life {
        match self.life(fe) {
            Life::Unseen if self.pid.is_none() && sees_all_processes() => {
                Process::find(fe).map_or(Life::Ended, Life::Alive)
            }
            life => life,
        }
    }

    /// Whether there is, or was, one.
    pub(crate) fn is_recorded(&self) -> bool {
        self.state.is_some() || self.pid.is_some()
    }

    /// Whether it serves devices that are added now.
    pub(crate) fn is_running(&self, fe: DomId) -> bool {
        self.state.as_deref() == Some("running") && !matches!(self.life(fe), Life::Ended)
    }
}

fn is_qemu(pid: u32) -> bool {
    let command = proc::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    program
        .rsplit(|byte| *byte == b'/')
        .next()
        .is_some_and(|name| name.windows(4).any(|part| part == b"qemu"))
}

/// Whether a process that is not seen is not there: in a pid namespace of our own it may be.
fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE)
}

/// Waits until a device's model has let go of it, by its end; for ever if a kernel serves the device, or if the
/// model cannot be seen while its guest is there. Where there is neither a model to be seen nor a guest, it is taken to
/// have gone after a while ([`Limits::unseen`](crate::Limits::unseen)).
///
/// `known`: its process, if it was looked at before.
pub(crate) async fn let_go(
    toolstack: &Toolstack,
    target: &Target,
    known: Option<&Process>,
) -> Result<Reached, Cause> {
    let id = target.id();
    let ended = async |process: &Process| match process.ended().await {
        Ok(()) => Ok(Reached::ServerGone),
        // A pidfd that cannot be waited for tells nothing.
        Err(_) => std::future::pending().await,
    };
    if let Some(process) = known {
        return ended(process).await;
    }
    let Some(model) = Model::of(&toolstack.client, &id).await? else { return std::future::pending().await };
    match model.life(id.fe) {
        Life::Alive(process) => ended(&process).await,
        Life::Ended => Ok(Reached::ServerGone),
        Life::Unseen => {
            // A guest that has shut down keeps its model until it is destroyed.
            facts::until(&*toolstack.facts, id.fe, Condition::is_gone).await;
            sleep(toolstack.limits.unseen).await;
            Ok(Reached::ServerUnseen)
        }
    }
}

/// The log of a guest's device model, from where it ended when this was made.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    /// Of a guest of this name, if a file can have that.
    pub(crate) fn of(directory: &FilePath, guest: &str) -> Option<Self> {
        if guest.is_empty() || guest.contains('/') {
            return None;
        }
        Self::at(directory.join(format!("qemu-dm-{guest}.log")))
    }

    /// At this path.
    pub(crate) fn at(path: PathBuf) -> Option<Self> {
        let from = fs::metadata(&path).ok()?.len();
        Some(Self { path, from })
    }

    /// At this path, all of it.
    pub(crate) fn beginning(path: PathBuf) -> Self {
        Self { path, from: 0 }
    }

    pub(crate) fn path(&self) -> &FilePath {
        &self.path
    }

    /// Waits until QEMU has said there that it cannot make a device.
    pub(crate) async fn refusal(&self, target: &Target) -> String {
        let id = target.id();
        loop {
            if let Some(line) = self.refusal_now(id.be_kind, id.devid) {
                return line;
            }
            sleep(LOOK).await;
        }
    }

    /// What QEMU has said there of a device that it cannot make.
    pub(crate) fn refusal_now(&self, kind: BackendKind, devid: u32) -> Option<String> {
        let device = format!("'{kind}' device '{devid}'");
        let said = self.read()?;
        // One that is not whole yet is read the next time.
        let mut lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        lines
            .find(|line| line.contains("failed") && line.contains(&device))
            .map(|line| shown(line.as_bytes()))
    }

    /// The last that was said there.
    pub(crate) fn last_words(&self) -> Option<String> {
        self.read()?.lines().rfind(|line| !line.trim().is_empty()).map(|line| shown(line.as_bytes()))
    }

    /// What was said there last.
    fn read(&self) -> Option<String> {
        use std::os::unix::fs::FileExt;
        let file = fs::File::open(&self.path).ok()?;
        let end = file.metadata().ok()?.len();
        let from = self.from.max(end.saturating_sub(LOG_MAX));
        let mut said = vec![0; usize::try_from(end.checked_sub(from)?).ok()?];
        file.read_exact_at(&mut said, from).ok()?;
        Some(String::from_utf8_lossy(&said).into_owned())
    }
}

/// The first version of QEMU that exits when one of its older backends is to be added to it: seen with 10.0.13, and
/// not with 7.2.22.
const TAKES_NO_OLDER_BACKEND: u64 = 10;

impl Toolstack {
    /// Refuses a device of which the guest's device model would die, and all that it serves with it. A version that cannot
    /// be asked for hinders nothing.
    pub(crate) async fn check_model(&self, fe: DomId, backend: BackendKind) -> Result<(), Cause> {
        if !matches!(backend, BackendKind::Vfb | BackendKind::Vkbd | BackendKind::P9 | BackendKind::Qusb) {
            return Ok(());
        }
        let monitor = self.monitor(fe);
        let monitor = timeout(self.limits.file, Connection::open(&monitor)).await;
        match monitor.ok().and_then(Result::ok).and_then(|monitor| monitor.major()) {
            Some(major) if major >= TAKES_NO_OLDER_BACKEND => Err(Cause::NotSupported {
                what: format!("a {backend} backend for a domain whose device model is QEMU {major}"),
                needs: "QEMU 9 or older: later ones exit when such a device is added, and take all disks that they serve with \
                        them",
            }),
            _ => Ok(()),
        }
    }

    /// The log of a guest's device model, as it stands.
    pub(crate) async fn model_log(&self, fe: DomId) -> Result<Option<Log>, Cause> {
        let name = Path::new(format!("/local/domain/{fe}/name"))?;
        let name = text(self.client.read_opt(&name).await?);
        Ok(name.and_then(|name| Log::of(&self.log_dir, &name)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    const FE: DomId = DomId(7);

    /// A process that says that it is the device model of a guest.
    fn process(fe: DomId) -> Child {
        let fe = fe.to_string();
        let mut command = Command::new("sh");
        command.args(["-c", "echo; read x", "sh", "-xen-domid", &fe]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it speaks it has its own command line.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    fn model(child: &Child) -> Model {
        Model { state: Some("running".to_owned()), pid: Some(child.id()) }
    }

    #[tokio::test]
    async fn the_end_of_its_process_is_the_evidence() {
        let mut child = process(FE);
        let Life::Alive(process) = model(&child).life(FE) else { panic!("it lives") };
        assert!(model(&child).is_running(FE));
        child.kill().unwrap();
        process.ended().await.unwrap();
        // A zombie, and then nothing.
        assert!(!matches!(model(&child).life(FE), Life::Alive(_)));
        child.wait().unwrap();
        assert!(!matches!(model(&child).life(FE), Life::Alive(_)));
    }

    #[test]
    fn another_process_of_its_number_is_not_taken_for_it() {
        let mut other = process(DomId(70));
        assert!(!matches!(model(&other).life(FE), Life::Alive(_)));
        let me = Model { pid: Some(std::process::id()), ..Model::default() };
        assert!(!matches!(me.life(FE), Life::Alive(_)));
        assert!(matches!(Model::default().life(FE), Life::Unseen));
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn b11_the_log_tells_why_a_device_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu-dm-guest.log");
        let line = "qemu-system-i386: failed to create 'qdisk' device '51760': failed to create drive: no qcow2\u{1b}";
        fs::write(&path, format!("{line}\n")).unwrap();
        let log = Log::of(directory.path(), "guest").unwrap();
        let line_of = |log: &Log, devid| log.refusal_now(BackendKind::Qdisk, devid);
        assert_eq!(line_of(&log, 51760), None, "what stood there before is of another day");
        let mut file = fs::File::options().append(true).open(&path).unwrap();
        write!(file, "{line}").unwrap();
        assert_eq!(line_of(&log, 51760), None, "half a line");
        writeln!(file).unwrap();
        assert_eq!(line_of(&log, 51760).as_deref(), Some(&*shown(line.as_bytes())));
        assert_eq!(line_of(&log, 5176), None);
        writeln!(file).unwrap();
        assert_eq!(log.last_words().as_deref(), Some(&*shown(line.as_bytes())));
        assert!(Log::of(directory.path(), "../guest").is_none());
    }
}
