//! `devd`: serves the devices of a driver domain, as `xl devd` does.

mod background;
mod log;
mod service;
mod status;

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::catch_unwind;
use std::path::{self, Path as FilePath, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use rustix::fs::OFlags;
use tokio::time::timeout;
use xen_aodevice::NativeRunner;
use xen_aodevice::devd::{Claim, Daemon, DaemonError, Event, QemuProgram, Settings};
use xen_hotplug::{Limits, ScriptRunner};
use xs_client::{Auto, Client, Config, Lifecycle, Reconnect, UnixSocket};

use self::log::Log;
use crate::args::Common;
use crate::journal::{Priority, is_journal};
use crate::options::seconds;
use crate::output::Role;
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::{cancel_on_signal, on_hangup};
use crate::world::StoreChoice;

/// Where the log is that nobody has chosen another place for.
const LOG: &str = "/var/log/xen/xendev-devd.log";

#[derive(Debug, ClapArgs)]
pub(crate) struct DevdArgs {
    /// Stay in the foreground, and log to standard error unless --log is said
    #[arg(short = 'F', long)]
    foreground: bool,
    /// Write the process id to this file, which is removed at the end
    #[arg(short, long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Add the log to this file
    /// [default: /var/log/xen/xendev-devd.log, and standard error with -F or for systemd's journal]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Tell whether a daemon runs here, and of the devices that it has noted; exit with 1 if none runs
    #[arg(long)]
    status: bool,
    /// Serve the devices of domain 0 too, whose toolstack runs their scripts itself, if this is domain 0
    #[arg(long)]
    serve_domain0: bool,
    /// How long a hotplug script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
    /// The QEMU that serves `qdisk` and `9pfs` [default: the one that the system has for Xen]
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Where the logs of QEMUs are: `qdisk-DOMID.log`
    #[arg(long, value_name = "DIR", default_value = "/var/log/xen")]
    qemu_log_dir: PathBuf,
    /// How long a QEMU may take to start
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "60")]
    qemu_timeout: Duration,
    /// How many devices are worked on at one time
    #[arg(long, value_name = "N", default_value = "16")]
    at_once: NonZeroUsize,
    /// Where the locks of devices are
    #[arg(long, value_name = "DIR", default_value = "/run/xendev")]
    run_dir: PathBuf,
    /// This is the process in the background.
    #[arg(long, hide = true)]
    background: bool,
}

impl DevdArgs {
    pub(crate) fn role_of_stdout(&self) -> Role {
        if self.status { Role::Purpose } else { Role::Report }
    }
}

const TRIED: &str = "cannot serve the devices of this domain";

/// How long to wait for a daemon that ends.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long giving up the claim may take: a store that is gone does not answer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The pid file, which goes with the daemon.
struct PidFile(PathBuf);

impl Drop for PidFile {
    /// It may be a device by its administrator's will, or the next daemon's by now.
    fn drop(&mut self) {
        let is_file = fs::symlink_metadata(&self.0).is_ok_and(|file| file.is_file());
        if is_file && fs::read(&self.0).is_ok_and(|text| text == Self::text().as_bytes()) {
            _ = fs::remove_file(&self.0);
        }
    }
}

impl PidFile {
    fn text() -> String {
        format!("{}\n", process::id())
    }

    fn write(path: PathBuf) -> Result<Self, Problem> {
        // A FIFO that nobody reads is refused.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let open = || File::options().write(true).create(true).truncate(true).custom_flags(flags).open(&path);
        let written = open().and_then(|mut file| {
            // Not a link that leads there: it is the file that tells of this process.
            let written = Self(fs::canonicalize(&path)?);
            let put = file.write_all(Self::text().as_bytes());
            if put.is_err() && file.metadata().is_ok_and(|file| file.is_file()) {
                _ = fs::remove_file(&written.0);
            }
            put.map(|()| written)
        });
        let hint = "name a file that you may write to with --pidfile";
        written.map_err(|error| no_use(&path, &error, hint))
    }
}

/// What was named on the command line cannot be used.
fn no_use(path: &FilePath, error: &io::Error, hint: &'static str) -> Problem {
    Problem::new(Code::Start, TRIED, format!("{}: {error}", path.display()), hint)
}

/// A path that means the same in every working directory.
fn absolute(path: &FilePath) -> PathBuf {
    path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes the directory of the locks, and a file there: that it cannot be had is not to be found out by the first script.
fn make_locks(directory: &FilePath) -> Result<(), Problem> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let made = made.and_then(|()| tempfile::tempfile_in(directory).map(drop));
    let hint = "run it as root, or name a folder of yours with --run-dir";
    made.map_err(|error| no_use(directory, &error, hint))
}

/// Makes the thread that is kept for what may block, as long as one can be made.
fn have_thread() -> Result<(), Problem> {
    let spawned = catch_unwind(|| tokio::task::spawn_blocking(|| ()));
    let hint = "see the limits of its processes: ulimit -u, and TasksMax of a service";
    spawned.map(drop).map_err(|_| Problem::new(Code::Start, TRIED, "no thread can be started", hint))
}

/// Looks whether QEMU can be had under this path, before the first disk needs it.
fn check_qemu(program: &FilePath) -> Result<(), Problem> {
    let is_program = fs::metadata(program).and_then(|file| {
        let runs = file.is_file() && file.permissions().mode() & 0o111 != 0;
        if runs { Ok(()) } else { Err(io::Error::other("it is no program")) }
    });
    let hint = "name a QEMU with --qemu, or leave that out for the one that the system has for Xen";
    is_program.map_err(|error| no_use(program, &error, hint))
}

pub(crate) async fn run(common: &Common, args: &DevdArgs) -> Result<Exit, Problem> {
    if args.status {
        return status::run(common, connect(common, Config::default()).await?).await;
    }
    if !args.foreground && !args.background && !is_journal() {
        return background::start();
    }
    // First, so that no signal ends it in the midst of a script.
    let stop = cancel_on_signal();
    have_thread()?;
    let (log_file, pidfile) = (args.log.as_deref().map(absolute), args.pidfile.as_deref().map(absolute));
    let run_dir = absolute(&args.run_dir);
    let (qemu, qemu_log_dir) = (args.qemu.as_deref().map(absolute), absolute(&args.qemu_log_dir));
    if args.background {
        background::leave_session();
        background::end_with_starter();
    }
    let to_file = log_file.or_else(|| args.background.then(|| LOG.into()));
    let log = Arc::new(Log::open(to_file, common.quiet)?);
    // A terminal that is closed ends what it has in its foreground.
    if log.file().is_some() || !io::stderr().is_terminal() {
        let (log, background) = (log.clone(), args.background);
        on_hangup(move || {
            log.reopen();
            if background {
                background::leave_output_to(&log);
            }
        });
    }
    make_locks(&run_dir)?;
    qemu.as_deref().map_or(Ok(()), check_qemu)?;
    let client = connect(common, config()).await?;
    let mut scripts = ScriptRunner::new().lock_dir(&run_dir);
    let mut qemus = QemuProgram::default().log_dir(qemu_log_dir);
    if let Some(program) = qemu {
        qemus = qemus.program(program);
    }
    for (name, value) in place_of_store(&common.store) {
        qemus = qemus.env(name, &value);
        scripts = scripts.env(name, value);
    }
    let runner = Arc::new(NativeRunner::new(client.clone(), scripts, common.hotplug));
    let of_claim = client.clone();
    let mut settings = Settings::default();
    settings.at_once = args.at_once.get();
    settings.scripts = Limits::default().deadline(args.script_timeout);
    settings.serve_domain0 = args.serve_domain0;
    settings.qemus = Arc::new(qemus);
    settings.qemu_start = args.qemu_timeout;
    let daemon =
        unless_cancelled(TRIED, Daemon::new(client, runner, settings)).await?.map_err(cannot_serve)?;
    let claim = unless_cancelled(TRIED, Claim::take(&of_claim, PATIENCE)).await?.map_err(cannot_serve)?;
    let _pidfile = pidfile.map(PidFile::write).transpose()?;
    log.line(
        Priority::Info,
        &format!("serving the devices of domain {}, process {}", daemon.own(), process::id()),
    );
    let (background, log_of_events, log_of_ready) = (args.background, log.clone(), log.clone());
    let stop_of_ready = stop.clone();
    // Both end with the process.
    tokio::spawn(service::keep_alive(stop.clone()));
    let serves = format!("serves the devices of domain {}", daemon.own());
    tokio::spawn(tell_of_store(of_claim.clone(), log.clone(), serves.clone()));
    let tell = move |event: &Event| log_of_events.line(priority(event), &event.to_string());
    let ready = move |devices| {
        let told = format!("ready, {devices} devices are there");
        log_of_ready.line(Priority::Info, &told);
        service::ready(&serves);
        if background && !background::is_ready(&log_of_ready) {
            stop_of_ready.cancel();
        }
    };
    let mut serving = std::pin::pin!(daemon.run(stop.clone(), tell, ready));
    let served = tokio::select! {
        served = &mut serving => served,
        other = claim.lost() => {
            // Scripts that run come to their ends; the other daemon's wait for the locks of their devices.
            stop.cancel();
            serving.await.and(Err(DaemonError::RunsAlready(other)))
        }
    };
    let (priority, ended) = match &served {
        Ok(()) => (Priority::Info, "ended by a signal; devices stay attached".to_owned()),
        Err(DaemonError::RunsAlready(other)) => {
            (Priority::Error, format!("ended: {other} serves this domain"))
        }
        Err(error) => (Priority::Error, format!("ended: {error}")),
    };
    log.line(priority, &ended);
    if served.is_ok() {
        // What stays tells of a process that is dead.
        _ = timeout(LAST_WORDS, claim.release()).await;
    }
    served.map(|()| Exit::Done).map_err(cannot_serve)
}

/// How much an event matters to whoever reads the log.
fn priority(event: &Event) -> Priority {
    match event {
        Event::Failed(..) => Priority::Error,
        Event::Trouble(..) | Event::Unreadable { removed: false, .. } | Event::Store(_) => Priority::Warning,
        _ => Priority::Info,
    }
}

/// Where programs find the store that this one works on: those of scripts, and QEMU.
fn place_of_store(store: &StoreChoice) -> Vec<(&'static str, PathBuf)> {
    if let StoreChoice::Socket(socket) = store {
        return vec![("XENSTORED_PATH", absolute(socket))];
    }
    let given = |name| env::var_os(name).map(|path| (name, path.into()));
    ["XENSTORED_PATH", "XENSTORED_RUNDIR"].into_iter().filter_map(given).collect()
}

/// Tells when the store goes, and when it is back: then the daemon `serves`.
async fn tell_of_store(client: Client, log: Arc<Log>, serves: String) {
    let mut lifecycle = client.lifecycle();
    while let Some(state) = lifecycle.next().await {
        match state {
            Lifecycle::Lost(error) => {
                let told = format!("{error}; it is waited for");
                log.line(Priority::Warning, &told);
                service::status(&told);
            }
            Lifecycle::Restored(_) => {
                log.line(Priority::Info, "the store is back");
                service::status(&serves);
            }
            _ => {}
        }
    }
}

/// A driver domain without its store can do nothing but wait for it.
fn config() -> Config {
    let reconnect = Reconnect { within: Duration::MAX, ..Reconnect::default() };
    Config { reconnect: Some(reconnect), ..Config::default() }
}

async fn connect(common: &Common, config: Config) -> Result<Client, Problem> {
    let tried = "cannot reach the store";
    let client = async {
        Ok(match &common.store {
            StoreChoice::Default => Client::connect_with(Auto::default(), config).await,
            StoreChoice::Socket(socket) => {
                Client::connect_with(UnixSocket::new(socket.as_path()), config).await
            }
            StoreChoice::Embedded => {
                let observed = "an embedded store is this process's own, and nobody attaches devices there";
                return Err(Problem::new(Code::Usage, tried, observed, "leave out --store"));
            }
        })
    };
    unless_cancelled(tried, client).await??.map_err(|error| Problem::store(tried, &error))
}

fn cannot_serve(error: DaemonError) -> Problem {
    problem(TRIED, error)
}

/// Why what was tried cannot be had.
fn problem(tried: &str, error: DaemonError) -> Problem {
    let (code, hint) = match &error {
        DaemonError::Store(error) => return Problem::store(tried, error),
        DaemonError::Domain0 => (
            "domain0",
            "run it in a driver domain; --serve-domain0 serves what toolstacks elsewhere attach to domain 0",
        ),
        DaemonError::NoNotes => {
            ("not_a_driver_domain", "create this domain with driver_domain=1 in its configuration")
        }
        DaemonError::RunsAlready(holder) if !holder.seen => (
            "runs_already",
            "end that one first; if it is gone, remove what names it: xenstore-rm libxl/xendev-devd",
        ),
        DaemonError::RunsAlready(_) => {
            ("runs_already", "end that one first; xendev devd --status tells what it does")
        }
        _ => ("no_domid", "see whether the toolstack has written this domain's nodes"),
    };
    Problem::new(Code::Of(code), tried, error, hint)
}
