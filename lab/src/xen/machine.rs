//! The emulated machine: a QEMU process, its serial console, and the watch over both.
//!
//! QEMU boots Xen by multiboot with two modules, the kernel of dom0 and its initramfs: no disk, no boot
//! loader, no KVM. All output of Xen and dom0 arrives on the serial port. It is kept whole, byte by byte as
//! it comes, so that even the half line before a hang can be read afterwards.
//!
//! QEMU never outlives the lab: it is killed when [`Machine`] is dropped, and by the kernel (a parent-death
//! signal, set by setpriv(1) before it becomes QEMU) when the lab itself is killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::packages::Packages;
use crate::failure::output_of;

/// What is emulated.
#[derive(Debug)]
pub struct Model {
    cpu: &'static str,
    memory: &'static str,
    dom0_memory: &'static str,
}

impl Model {
    /// A host whose guests are all PV. Its processor has all features that QEMU can emulate, except four that
    /// make Xen 4.17's PV dom0 die of a page fault at once.
    pub const PV_ONLY: Self = Self { cpu: "max,-smap,-smep,-pku,-la57", memory: "3G", dom0_memory: "1536M" };

    /// A host that has PVH and HVM guests too, by AMD's SVM, with the memory that their device models need.
    /// Xen's idle loop does not survive `monitor`; the guests do not survive `nrip-save` and `rdtscp`, since
    /// the emulator tells Xen of a RDTSC where there was a RDTSCP.
    pub const ALL_GUESTS: Self = Self {
        cpu: "EPYC,+svm,+npt,-nrip-save,-monitor,-rdtscp,-smap,-smep",
        memory: "4G",
        dom0_memory: "2200M",
    };
}

/// Without `xsave=0` programs in PV domains, dom0's own among them, crash at random under this emulation: a
/// stress loop saw about ten crashes a domain with it on and none with it off. Such a crash inside a hotplug
/// script looks like a fault of whoever runs the script.
const XEN_ARGUMENTS: &str = "console=com1 com1=115200 xsave=0 dom0_max_vcpus=1 noreboot loglvl=warning";
const KERNEL_ARGUMENTS: &str = "console=hvc0 quiet";

/// What the hypervisor or the kernel of dom0 print before they stop for ever.
const LAST_WORDS: [&str; 3] = ["Panic on CPU", "Kernel panic", "Hardware Dom0 crashed"];
/// How long to go on reading after them, for the registers and the stack.
const AFTER_LAST_WORDS: Duration = Duration::from_secs(3);

/// How long the machine may run, and how long it may say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From start to end.
    pub overall: Duration,
    /// Between two lines.
    pub silence: Duration,
}

/// Why the watch over a machine ended.
#[derive(Debug)]
pub enum Stop {
    /// The reader of its lines had seen enough.
    Done,
    /// QEMU ended.
    Exited(ExitStatus),
    /// The hypervisor or dom0 crashed; this was the line that told.
    Crashed(String),
    /// No line for too long.
    Silent,
    /// It took too long as a whole.
    TimedOut,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    errors: PathBuf,
}

impl Machine {
    /// Starts the machine with `image` as dom0's initramfs. Files of this run go to `folder`, among them
    /// `console.log`. To be called from a thread that lives as long as the machine: its death ends QEMU.
    pub fn start(model: &Model, packages: &Packages, image: &Path, folder: &Path) -> Result<Self> {
        let xen = folder.join("xen");
        fs::write(&xen, output_of(Command::new("gzip").arg("-dc").arg(&packages.xen_gz))?)?;
        // Commas separate the modules, so one in a path is written twice.
        let module = |path: &Path| path.display().to_string().replace(',', ",,");
        let modules = format!("{} {KERNEL_ARGUMENTS},{}", module(&packages.kernel), module(image));

        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            model.cpu,
            "-smp",
            "2",
            "-m",
            model.memory,
        ]);
        command.args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
            "-net",
            "none",
        ]);
        let arguments = format!("{XEN_ARGUMENTS} dom0_mem={0},max:{0}", model.dom0_memory);
        command.arg("-kernel").arg(&xen).args(["-append", &arguments, "-initrd", &modules]);
        Self::spawn(command, folder)
    }

    fn spawn(mut command: Command, folder: &Path) -> Result<Self> {
        let log = File::create(folder.join("console.log")).context("cannot create console.log")?;
        let errors = folder.join("qemu.log");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        let mut qemu = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let console = qemu.stdout.take().context("QEMU has no standard output")?;

        // The bound only matters if our own output is stuck; then QEMU waits too.
        let (sender, lines) = mpsc::sync_channel(1024);
        thread::spawn(move || read_console(console, log, &sender));
        Ok(Self { qemu, lines, errors })
    }

    /// Hands each line of the console to `on_line` until that returns true, QEMU ends, or a limit is reached.
    pub fn watch(&mut self, limits: Limits, mut on_line: impl FnMut(&str) -> bool) -> Result<Stop> {
        let mut end = Instant::now() + limits.overall;
        let mut last_words = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(limits.silence)) {
                Ok(line) => {
                    if last_words.is_none() && LAST_WORDS.iter().any(|words| line.contains(words)) {
                        end = end.min(Instant::now() + AFTER_LAST_WORDS);
                        last_words = Some(line.clone());
                    }
                    if on_line(&line) {
                        return Ok(Stop::Done);
                    }
                }
                Err(reason) => {
                    return Ok(match (last_words, reason) {
                        (Some(line), _) => Stop::Crashed(line),
                        (None, RecvTimeoutError::Disconnected) => Stop::Exited(self.qemu.wait()?),
                        (None, RecvTimeoutError::Timeout) if Instant::now() >= end => Stop::TimedOut,
                        (None, RecvTimeoutError::Timeout) => Stop::Silent,
                    });
                }
            }
        }
    }

    /// What QEMU itself had to say, as opposed to the machine in it.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if QEMU is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Copies the console to the log as it comes and passes it on line by line, without carriage returns.
fn read_console(mut console: ChildStdout, mut log: File, lines: &SyncSender<String>) {
    let mut buffer = [0; 4096];
    let mut pending = Vec::new();
    while let Ok(length @ 1..) = console.read(&mut buffer) {
        // A full disk must not end the run: the lines still count.
        let _ = log.write_all(&buffer[..length]);
        pending.extend_from_slice(&buffer[..length]);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    }
    if !pending.is_empty() {
        // The reader may be gone, and then nobody misses it.
        let _ = lines.send(String::from_utf8_lossy(&pending).trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { overall: Duration::from_secs(20), silence: Duration::from_secs(10) };

    /// Watches a shell script in QEMU's place until it says "enough".
    fn watch(script: &str, limits: Limits) -> (Stop, String) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut machine = Machine::spawn(command, folder.path()).unwrap();
        let stop = machine.watch(limits, |line| line == "enough").unwrap();
        (stop, fs::read_to_string(folder.path().join("console.log")).unwrap())
    }

    #[test]
    fn the_reader_of_the_lines_ends_the_watch() {
        let (stop, log) = watch("printf 'one\\r\\nenough\\n'; exec sleep 60", LIMITS);
        assert!(matches!(stop, Stop::Done), "{stop:?}");
        assert_eq!(log, "one\r\nenough\n");
    }

    #[test]
    fn an_early_end_is_told_with_its_status() {
        let (stop, log) = watch("printf 'half a line'; exit 3", LIMITS);
        assert!(matches!(stop, Stop::Exited(status) if status.code() == Some(3)), "{stop:?}");
        assert_eq!(log, "half a line");
    }

    #[test]
    fn silence_has_a_limit() {
        let limits = Limits { silence: Duration::from_millis(100), ..LIMITS };
        let (stop, log) = watch("printf 'half a line'; exec sleep 60", limits);
        assert!(matches!(stop, Stop::Silent), "{stop:?}");
        assert_eq!(log, "half a line");
    }

    #[test]
    fn steady_progress_has_a_limit_too() {
        let limits = Limits { overall: Duration::from_millis(300), ..LIMITS };
        let (stop, _) = watch("while echo more; do sleep 0.05; done", limits);
        assert!(matches!(stop, Stop::TimedOut), "{stop:?}");
    }

    #[test]
    fn a_crash_is_told_with_what_follows_it() {
        let (stop, log) = watch("echo '(XEN) Panic on CPU 0:'; echo why; exec sleep 60", LIMITS);
        assert!(matches!(&stop, Stop::Crashed(line) if line == "(XEN) Panic on CPU 0:"), "{stop:?}");
        assert_eq!(log, "(XEN) Panic on CPU 0:\nwhy\n");
    }
}
