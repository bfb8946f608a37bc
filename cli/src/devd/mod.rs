//! `devd`: serves the devices of a driver domain, as `xl devd` does.

mod background;
mod log;
mod status;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{self, Path as FilePath, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use rustix::fs::OFlags;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use xen_aodevice::NativeRunner;
use xen_aodevice::devd::{Claim, Daemon, DaemonError, QemuProgram, Settings};
use xen_hotplug::{Limits, ScriptRunner};
use xs_client::{Auto, Client, Config, Reconnect, UnixSocket};

use self::log::Log;
use crate::args::Common;
use crate::options::seconds;
use crate::output::Role;
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::cancel_on_signal;
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
    if !args.foreground && !args.background && !log::is_journal() {
        return background::start();
    }
    // First, so that no signal ends it in the midst of a script.
    let stop = cancel_on_signal();
    let (log_file, pidfile) = (args.log.as_deref().map(absolute), args.pidfile.as_deref().map(absolute));
    let run_dir = absolute(&args.run_dir);
    let (qemu, qemu_log_dir) = (args.qemu.as_deref().map(absolute), absolute(&args.qemu_log_dir));
    if args.background {
        background::leave_session();
        background::end_with_starter();
    }
    let to_file = log_file.or_else(|| args.background.then(|| LOG.into()));
    let log = Arc::new(Log::open(to_file.as_deref(), common.quiet)?);
    make_locks(&run_dir)?;
    qemu.as_deref().map_or(Ok(()), check_qemu)?;
    let client = connect(common, config()).await?;
    let mut scripts = ScriptRunner::new().lock_dir(&run_dir);
    let mut qemus = QemuProgram::default().log_dir(qemu_log_dir);
    if let Some(program) = qemu {
        qemus = qemus.program(program);
    }
    if let StoreChoice::Socket(socket) = &common.store {
        // The scripts' own xenstore programs are to talk to the same store, and so is QEMU.
        qemus = qemus.env("XENSTORED_PATH", absolute(socket));
        scripts = scripts.env("XENSTORED_PATH", absolute(socket));
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
    log.line(&format!("serving the devices of domain {}, process {}", daemon.own(), process::id()));
    let (background, log_of_events, log_of_ready) = (args.background, log.clone(), log.clone());
    let stop_of_ready = stop.clone();
    let tell = move |event: &_| log_of_events.line(&format!("{event}"));
    let ready = move |devices| {
        let told = format!("ready, {devices} devices are there");
        log_of_ready.line(&told);
        // Where nobody waits for it, nobody is told.
        _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&told)]);
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
        () = feed_watchdog() => Ok(()),
    };
    log.line(&match &served {
        Ok(()) => "ended by a signal; devices stay attached".to_owned(),
        Err(DaemonError::RunsAlready(other)) => format!("ended: {other} serves this domain"),
        Err(_) => "ended: the store is gone".to_owned(),
    });
    if served.is_ok() {
        // What stays tells of a process that is dead.
        _ = claim.release().await;
    }
    served.map(|()| Exit::Done).map_err(cannot_serve)
}

/// Tells systemd's watchdog that the daemon goes on, where it is set. Never ends.
async fn feed_watchdog() {
    let Some(within) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = interval((within / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        _ = sd_notify::notify(&[NotifyState::Watchdog]);
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
