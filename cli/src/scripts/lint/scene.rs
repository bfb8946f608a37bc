//! The store in which a script is checked, and the devices for which it is run: made as an attach makes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xen_aodevice::vbd::{Vbd, Vdev};
use xen_aodevice::{Device as Asked, DeviceId, PlannedWrite, Toolstack, WaitFor, sim, vif};
use xen_hotplug::native::block::{Saved, detach};
use xen_hotplug::{Action, Limits, Report, Request, Runner as _, ScriptRunner};
use xs_client::{Client, Config, DomId, Path};
use xs_store::Store;

use super::host::{Host, Survivor, survivors};
use super::sandbox::{Sandbox, ip};

/// The guests.
pub(super) const GUEST: DomId = DomId(1);
pub(super) const OTHER: DomId = DomId(2);

/// Why the checks cannot go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// A signal came.
    Cancelled,
    /// The sandbox failed, and not the script.
    Sandbox(String),
}

impl From<xs_client::Error> for Stop {
    fn from(error: xs_client::Error) -> Self {
        Self::Sandbox(error.to_string())
    }
}

impl From<xs_client::PathError> for Stop {
    fn from(error: xs_client::PathError) -> Self {
        Self::Sandbox(error.to_string())
    }
}

impl From<String> for Stop {
    fn from(error: String) -> Self {
        Self::Sandbox(error)
    }
}

/// What kind of device the script is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vbd,
    Vif,
}

/// What stands for a file of ours in a target.
pub(super) const FILE: &str = "%f";

/// What is checked, and how.
pub(super) struct Subject {
    pub(super) script: PathBuf,
    pub(super) kind: Kind,
    /// The disk's `params`, if it is not to be a file of ours; or the interface's keys.
    pub(super) target: Option<String>,
    pub(super) writable: bool,
    pub(super) variables: Vec<(String, String)>,
    /// How long the script may take.
    pub(super) limit: Duration,
}

/// The values of a directory or a whole store, by their paths.
pub(super) type Values = BTreeMap<String, String>;

/// A device that has been made.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) backend: Path,
    pub(super) frontend: Path,
    toolstack: Path,
    request: Request,
    /// The guest's end of its interface.
    peer: Option<String>,
}

/// A run, and what the script has said of it in the store.
pub(super) struct Ran {
    pub(super) report: Report,
    pub(super) keys: Values,
}

impl Ran {
    pub(super) fn key(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether it says in the store that it failed.
    pub(super) fn says_failed(&self) -> bool {
        matches!(self.key("hotplug-status"), Some("error" | "busy"))
    }

    pub(super) fn success(&self) -> bool {
        self.report.success() && !self.says_failed()
    }

    /// How it ended, and why by its own words.
    pub(super) fn told(&self) -> String {
        let status = self.key("hotplug-status").map(|status| format!(", hotplug-status is {status}"));
        let error = self.key("hotplug-error").map(|error| format!(", hotplug-error is {error}"));
        xen_hotplug::printable(
            format!("{}{}{}", self.report, status.unwrap_or_default(), error.unwrap_or_default()),
            1000,
        )
    }
}

pub(super) struct Scene {
    pub(super) sandbox: Sandbox,
    pub(super) subject: Subject,
    pub(super) client: Client,
    toolstack: Toolstack,
    runner: Arc<ScriptRunner>,
    cancel: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    /// How long a run may take: less, once it is known how long a good one does.
    pub(super) limit: Duration,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Scene {
    pub(super) async fn open(
        sandbox: Sandbox,
        subject: Subject,
        cancel: CancellationToken,
    ) -> Result<Self, Stop> {
        let store = Store::new();
        let listener = UnixListener::bind(sandbox.socket()).map_err(|error| error.to_string())?;
        [GUEST, OTHER].into_iter().for_each(|guest| store.introduce(guest));
        let client = Client::over(store.connect(DomId::DOM0), Config::default());
        let serving = tokio::spawn(async move {
            // It ends with the scene.
            _ = store.serve(listener).await;
        });
        sim::create_domain0(&client).await?;
        for (guest, name) in [(GUEST, "guest"), (OTHER, "other")] {
            sim::create_domain(&client, guest, name).await?;
            let vm = Path::new(format!("/local/domain/{guest}/vm"))?;
            client.write(&vm, format!("/vm/00000000-0000-0000-0000-00000000000{guest}")).await?;
        }
        let mut runner = ScriptRunner::new().env("XENSTORED_PATH", sandbox.socket());
        for (name, value) in &subject.variables {
            runner = runner.env(name, value);
        }
        let runner = Arc::new(runner.lock_dir(sandbox.path("locks")));
        let toolstack = Toolstack::new(client.clone(), runner.clone()).await?;
        let limit = subject.limit;
        let scene = Self { sandbox, subject, client, toolstack, runner, cancel, serving, limit };
        if scene.is_vif() {
            scene.make_network()?;
        }
        Ok(scene)
    }

    pub(super) fn is_vif(&self) -> bool {
        self.subject.kind == Kind::Vif
    }

    /// Whether the targets are files of ours, of which there can be several, and which can be deleted.
    pub(super) fn has_own_targets(&self) -> bool {
        !self.is_vif() && self.subject.target.as_ref().is_none_or(|target| target.contains(FILE))
    }

    /// Whether two devices can be there at once: their targets differ, or what is said of interfaces.
    pub(super) fn has_several(&self) -> bool {
        let is_plain = |nic: vif::Vif| nic.ip.is_none() && nic.vifname.is_none() && nic.mac.is_none();
        if self.is_vif() { self.nic().is_ok_and(is_plain) } else { self.has_own_targets() }
    }

    /// A bridge, and a link to the world that leads nowhere.
    fn make_network(&self) -> Result<(), Stop> {
        let nic = self.nic()?;
        let bridge = nic.bridge.as_deref().filter(|bridge| !bridge.is_empty()).unwrap_or("xenbr0");
        let gateway = nic.gatewaydev.as_deref().unwrap_or("eth0");
        for command in [
            "link set lo up",
            &format!("link add {bridge} type bridge"),
            &format!("link set {bridge} up"),
            &format!("link add {gateway} type veth peer name world"),
            &format!("address add 192.0.2.1/24 dev {gateway}"),
            &format!("link set {gateway} up"),
        ] {
            ip(command)?;
        }
        Ok(())
    }

    fn nic(&self) -> Result<vif::Vif, Stop> {
        let words: Vec<&str> = self.subject.target.iter().map(String::as_str).collect();
        vif::parse(&words).map_err(|error| Stop::Sandbox(error.to_string()))
    }

    /// The target that was named, with this file of ours if it is to have one. The file is made unless it is there.
    pub(super) fn target(&self, name: &str) -> Result<String, Stop> {
        let file = self.file(name);
        if self.has_own_targets() && !file.exists() {
            let made = fs::File::create(&file).and_then(|made| made.set_len(1 << 20));
            made.map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(self.target_of(&file))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    /// The target with a file, which need not be there.
    pub(super) fn target_of(&self, file: &FsPath) -> String {
        let file = file.display().to_string();
        match &self.subject.target {
            Some(target) => target.replace(FILE, &file),
            None => file,
        }
    }

    /// Makes a device of a guest, up to where the script of its attach would be run.
    pub(super) async fn make(&self, fe: DomId, number: u32, target: &str) -> Result<Device, Stop> {
        self.make_with(fe, number, target, self.subject.writable, &self.subject.script).await
    }

    pub(super) async fn make_with(
        &self,
        fe: DomId,
        number: u32,
        target: &str,
        writable: bool,
        script: &FsPath,
    ) -> Result<Device, Stop> {
        let script = script.display().to_string();
        let (asked, kind) = match self.subject.kind {
            Kind::Vbd => {
                let mut disk = Vbd::new(target, Vdev::from_devid(51712 + 16 * number));
                (disk.script, disk.writable, disk.target_is_local) = (Some(script), writable, false);
                (Asked::Vbd(disk), xen_hotplug::Kind::Vbd)
            }
            Kind::Vif => {
                let mut nic = self.nic()?;
                (nic.script, nic.devid) = (Some(script), Some(number));
                (Asked::Vif(nic), xen_hotplug::Kind::Vif)
            }
        };
        let preview = self.toolstack.preview(fe, &asked, WaitFor::Script).await;
        let preview = preview.map_err(|failure| failure.to_string())?;
        for write in &preview.writes {
            match write {
                PlannedWrite::Write { path, value } => {
                    self.client.write(&Path::new(path.as_str())?, value.clone()).await?;
                }
                PlannedWrite::Mkdir { path } => self.client.mkdir(&Path::new(path.as_str())?).await?,
                // Whoever runs scripts is domain 0, to whom they are nothing.
                PlannedWrite::SetPerms { .. } => {}
                _ => return Err(Stop::Sandbox("a write that is not known".to_owned())),
            }
        }
        let id = preview.device;
        let paths = id.paths()?;
        let peer = match self.subject.kind {
            Kind::Vbd => None,
            Kind::Vif => {
                let peer = format!("guest{fe}.{number}");
                ip(&format!("link add vif{fe}.{number} type veth peer name {peer}"))?;
                Some(peer)
            }
        };
        self.client.write(&paths.backend.join("state")?, "2").await?;
        let script = PathBuf::from(self.keys(&paths.backend).await?.remove("script").unwrap_or_default());
        let keys = self.keys(&paths.backend).await?;
        let request = Request::new(kind, Action::Add, fe.0, id.devid, script);
        let request = keys.into_iter().fold(request, |request, (key, value)| request.recorded(key, value));
        let (backend, frontend, toolstack) = (paths.backend, paths.frontend, paths.toolstack);
        Ok(Device { id, backend, frontend, toolstack, request, peer })
    }

    /// Removes the nodes of a device, and its interface, as the toolstack and the driver do.
    pub(super) async fn unmake(&self, device: &Device) -> Result<(), Stop> {
        self.unmake_backend(device).await?;
        for directory in [&device.frontend, &device.toolstack] {
            self.remove(directory).await?;
        }
        Ok(())
    }

    /// The same, of the backend alone.
    pub(super) async fn unmake_backend(&self, device: &Device) -> Result<(), Stop> {
        self.remove(&device.backend).await?;
        if let Some(peer) = &device.peer {
            // The script may have removed it.
            _ = ip(&format!("link delete {peer}"));
        }
        Ok(())
    }

    async fn remove(&self, directory: &Path) -> Result<(), Stop> {
        match self.client.read_opt(directory).await? {
            Some(_) => Ok(self.client.rm(directory).await?),
            None => Ok(()),
        }
    }

    /// Runs the script that adds.
    pub(super) async fn add(&self, device: &Device) -> Result<Ran, Stop> {
        self.run(device, Action::Add, None).await
    }

    /// Runs the script that removes, after the backend has closed.
    pub(super) async fn take(&self, device: &Device) -> Result<Ran, Stop> {
        if self.client.read_opt(&device.backend).await?.is_some() {
            self.client.write(&device.backend.join("online")?, "0").await?;
            self.client.write(&device.backend.join("state")?, "6").await?;
        }
        self.run(device, Action::Remove, None).await
    }

    /// The same, in a copy of these keys.
    pub(super) async fn take_in_copy(&self, device: &Device, keys: &Values) -> Result<Ran, Stop> {
        let copy = Path::new(format!("/tool/xendev/undo/{}", device.id.devid))?;
        for (key, value) in keys {
            self.client.write(&copy.join(key)?, value.clone()).await?;
        }
        let ran = self.run(device, Action::Remove, Some(copy.to_string())).await?;
        self.remove(&Path::new("/tool/xendev")?).await?;
        Ok(ran)
    }

    async fn run(&self, device: &Device, action: Action, copy: Option<String>) -> Result<Ran, Stop> {
        let mut request = device.request.clone();
        request.action = action;
        request.copy = copy;
        let report = self.runner.run(&request, &self.limits(), &self.cancel).await;
        self.go_on()?;
        if let xen_hotplug::Ending::SpawnFailed(error) = &report.ending {
            return Err(Stop::Sandbox(format!("{request}: {error}")));
        }
        Ok(Ran { report, keys: self.keys(&device.backend).await? })
    }

    /// Runs the script that adds, and kills its group when this comes.
    pub(super) async fn add_and_kill(
        &self,
        device: &Device,
        when: impl Future<Output = ()>,
    ) -> Result<(), Stop> {
        let limits = self.limits();
        tokio::select! {
            // Its future is dropped if it has not ended by then.
            _ = self.runner.run(&device.request, &limits, &self.cancel) => {}
            () = when => {}
        }
        self.go_on()
    }

    /// Comes when something has been made on the host since then.
    pub(super) async fn made_since(&self, before: &Host) {
        while self.host().since(before).iter().all(|made| made.starts_with("file ")) {
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn limits(&self) -> Limits {
        Limits::default().deadline(self.limit).queue(self.limit.saturating_add(Duration::from_secs(5)))
    }

    fn go_on(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    /// The values of a directory; none if it is gone.
    pub(super) async fn keys(&self, directory: &Path) -> Result<Values, Stop> {
        let Some(tree) = self.client.read_tree(directory).await? else { return Ok(Values::new()) };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let nodes = tree.nodes().filter(|(name, _)| !name.is_empty());
        Ok(nodes.map(|(name, node)| (name, text(&node.value))).collect())
    }

    /// All values of the store.
    pub(super) async fn dump(&self) -> Result<Values, Stop> {
        self.keys(&Path::root()).await
    }

    /// Puts the values of the store back as they were, but for those below these nodes.
    pub(super) async fn restore(&self, before: &Values, but: &[&str]) -> Result<(), Stop> {
        let now = self.dump().await?;
        let paths = before.keys().chain(now.keys().filter(|path| !before.contains_key(*path)));
        for path in paths.filter(|path| before.get(*path) != now.get(*path)) {
            let node = Path::new(format!("/{path}"))?;
            if but.iter().any(|but| node.as_str() == *but || node.as_str().starts_with(&format!("{but}/"))) {
                continue;
            }
            match before.get(path) {
                Some(value) => self.client.write(&node, value.clone()).await?,
                None => self.remove(&node).await?,
            }
        }
        Ok(())
    }

    /// What is on the host, of all that counts.
    pub(super) fn host(&self) -> Host {
        let named = self.subject.target.as_ref().filter(|_| !self.is_vif());
        // As in dummy:/srv/d.img.
        let is_named = |file: &str| named.is_some_and(|target| target.contains(file));
        let is_ours = |file: &FsPath| self.sandbox.holds(file) || is_named(&file.to_string_lossy());
        Host::look(is_ours, self.is_vif())
    }

    /// The processes that scripts have left.
    pub(super) fn survivors(&self) -> Vec<Survivor> {
        survivors(&format!("XENSTORED_PATH={}", self.sandbox.socket().display()))
    }

    /// Takes away what a script has left since then, so that the next check begins as the first did.
    pub(super) async fn clean(&self, before: &Host) {
        self.survivors().iter().for_each(Survivor::kill);
        let there: Vec<&str> = before.loops().collect();
        for node in self.host().loops().filter(|node| !there.contains(node)) {
            let device = FsPath::new("/sys/block").join(node.trim_start_matches("/dev/"));
            let backing = fs::read_to_string(device.join("loop/backing_file"));
            let sequence = fs::read_to_string(device.join("diskseq"));
            let saved = Saved {
                node: node.to_owned(),
                params: backing.ok().map(|backing| backing.trim_end().to_owned()),
                file: None,
                sequence: sequence.ok().and_then(|sequence| sequence.trim().parse().ok()),
            };
            // Nobody cancels it: it is what is done after a signal, too.
            _ = detach(saved, Duration::from_secs(5), &CancellationToken::new()).await;
        }
    }

    /// Takes all away, and yields what could not be.
    pub(super) async fn close(self, before: &Host) -> Vec<String> {
        self.clean(before).await;
        // The network goes with its namespace.
        if self.is_vif() { Vec::new() } else { self.host().without_files().since(before) }
    }
}
