//! A program that runs a script and comes to a bad end: this test program, started once more.

use std::env;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action, Kind, Limits, Request, Runner, ScriptRunner};

/// What the variable says: how the program ends, the script, the directory of the locks.
const VARIABLE: &str = "HOTPLUG_TEST_PROGRAM";

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// After the script; with success if that succeeded.
    AfterScript,
    /// By `process::exit`, without drop, as soon as the script has made a file `ready`.
    Exit,
    /// By `process::abort`, likewise.
    Abort,
    /// By a panic in the thread that runs the script, likewise; the program goes on for long.
    Panic,
}

const ENDS: [End; 4] = [End::AfterScript, End::Exit, End::Abort, End::Panic];

/// Starts a program that runs a script as device 51712 of domain 1.
pub(crate) fn start(script: &Path, locks: &Path, end: End) -> Child {
    start_by(&mut Command::new(env::current_exe().unwrap()), script, locks, end)
}

/// The same for a program that inherits to ignore `SIGCHLD`.
pub(crate) fn start_ignoring_child_deaths(script: &Path, locks: &Path) -> Child {
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(env::current_exe().unwrap());
    start_by(&mut command, script, locks, End::AfterScript)
}

fn start_by(command: &mut Command, script: &Path, locks: &Path, end: End) -> Child {
    let value = format!("{end:?}\n{}\n{}", script.display(), locks.display());
    command
        .args(["--exact", "--ignored", "program::this_is_the_program"])
        .env(VARIABLE, value)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// No test of its own: the other tests start it.
#[test]
#[ignore = "the program that other tests start"]
fn this_is_the_program() {
    let value = env::var(VARIABLE).expect("other tests start this one");
    let [end, script, locks] = value.split('\n').collect::<Vec<_>>()[..] else { panic!("{value}") };
    let end = ENDS.into_iter().find(|known| format!("{known:?}") == end).unwrap();
    // Some of its ends would leave a core file.
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
    let ready = Path::new(script).with_file_name("ready");

    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let request = Request::new(Kind::Vbd, Action::Add, 1, 51712, script);
    let runner = ScriptRunner::new().lock_dir(locks);
    let run = async {
        let (limits, cancel) = (Limits::default(), CancellationToken::new());
        let mut running = runner.run(&request, &limits, &cancel);
        loop {
            tokio::select! {
                report = &mut running => return report,
                () = tokio::time::sleep(Duration::from_millis(5)), if end != End::AfterScript => {}
            }
            match end {
                End::Exit if ready.exists() => std::process::exit(0),
                End::Abort if ready.exists() => std::process::abort(),
                End::Panic if ready.exists() => panic!("as told"),
                _ => {}
            }
        }
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(run)));
    match outcome {
        Ok(report) => assert!(report.success(), "{report}"),
        Err(_) => std::thread::sleep(Duration::from_secs(60)),
    }
}
