//! No script of a device runs beside another of the same device.

use std::fs;
use std::future::ready;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action, Ending, Kind, Limits, Request, Runner, ScriptRunner};

use crate::program::{End, start};
use crate::support::{Scripts, eventually, exists, soon};

const RECORD: &str = "echo begin >> $DIR/record; sleep 0.2; echo end >> $DIR/record";

async fn run(locks: &Path, request: &Request, limits: Limits) -> xen_hotplug::Report {
    let runner = ScriptRunner::new().lock_dir(locks);
    soon(runner.run(request, &limits, &CancellationToken::new())).await
}

fn files(locks: &Path) -> usize {
    fs::read_dir(locks).unwrap().count()
}

#[tokio::test]
async fn two_programs_never_run_scripts_of_one_device_at_a_time() {
    let scripts = Scripts::new();
    let script = scripts.run(RECORD).script;
    let locks = scripts.path("locks");
    let programs: Vec<_> = (0..4).map(|_| start(&script, &locks, End::AfterScript)).collect();
    for mut program in programs {
        assert!(program.wait().unwrap().success());
    }
    assert_eq!(scripts.read("record"), "begin\nend\n".repeat(4));
    assert_eq!(files(&locks), 0);
}

#[tokio::test]
async fn the_runs_of_a_nic_exclude_each_other_and_other_devices_do_not_wait() {
    let scripts = Scripts::new();
    let slow = scripts.named_run("slow", ": > $DIR/ready; until [ -e $DIR/go ]; do sleep 0.02; done").script;
    let quick = scripts.named_run("quick", "echo ran >> $DIR/record").script;
    let locks = scripts.path("locks");
    let request = |kind, devid| Request::new(kind, Action::Add, 1, devid, &quick);
    let limits = Limits::default();
    let first = tokio::spawn({
        let (locks, vif) = (locks.clone(), Request::new(Kind::Vif, Action::Add, 1, 0, &slow));
        async move { run(&locks, &vif, limits).await }
    });
    eventually("it runs", || scripts.path("ready").exists()).await;
    for kind in [Kind::Vif, Kind::VifIoemu, Kind::Tap] {
        let report = run(&locks, &request(kind, 0), limits.queue(Duration::from_millis(100))).await;
        assert_eq!(report.ending, Ending::NotStarted);
    }
    for request in [request(Kind::Vif, 1), request(Kind::Vbd, 0)] {
        assert!(run(&locks, &request, limits).await.success());
    }
    let other_store = ScriptRunner::new().lock_dir(&locks).env("XENSTORED_PATH", "/other");
    let cancel = CancellationToken::new();
    assert!(soon(other_store.run(&request(Kind::Vif, 0), &limits, &cancel)).await.success());
    assert_eq!(scripts.read("record"), "ran\n".repeat(3));

    fs::write(scripts.path("go"), "").unwrap();
    assert!(soon(first).await.unwrap().success());
    assert!(run(&locks, &request(Kind::Tap, 0), limits).await.success());
    assert_eq!(files(&locks), 0);
}

#[tokio::test]
async fn waiting_for_the_device_can_be_cancelled_and_costs_no_deadline() {
    let scripts = Scripts::new();
    let request = scripts.run("echo begin >> $DIR/record; sleep 2");
    let locks = scripts.path("locks");
    let limits = Limits::default().deadline(Duration::from_millis(3500));
    let other = {
        let (locks, request) = (locks.clone(), request.clone());
        tokio::spawn(async move { run(&locks, &request, limits).await })
    };
    eventually("it runs", || scripts.path("record").exists()).await;
    let cancel = CancellationToken::new();
    let runner = ScriptRunner::new().lock_dir(&locks);
    let (cancelled, ()) = tokio::join!(runner.run(&request, &limits, &cancel), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
    });
    assert_eq!(cancelled.ending, Ending::Aborted);
    assert_eq!(scripts.read("record"), "begin\n");
    let report = run(&locks, &request, limits).await;
    assert!(report.success(), "{report}");
    assert!(soon(other).await.unwrap().success());
}

/// Whether a run is still wanted is asked when its turn has come, and not before.
#[tokio::test]
async fn a_run_is_permitted_under_the_lock_of_its_device() {
    let scripts = Scripts::new();
    let locks = scripts.path("locks");
    let limits = Limits::default();
    let first = scripts.named_run("first", "echo $$ > $DIR/pid; until [ -e $DIR/go ]; do sleep 0.02; done");
    let second = scripts.named_run("second", "echo ran >> $DIR/record");
    let running = {
        let locks = locks.clone();
        tokio::spawn(async move { run(&locks, &first, limits).await })
    };
    scripts.number("pid").await;
    let (runner, never) = (ScriptRunner::new().lock_dir(&locks), CancellationToken::new());
    let go = scripts.path("go");
    for permitted in [false, true] {
        let permit = Box::pin(async { go.exists() && permitted });
        let (report, ()) = tokio::join!(runner.run_if(&second, &limits, &never, permit), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fs::write(&go, "").unwrap();
        });
        assert_eq!(report.ending, if permitted { Ending::Exited(0) } else { Ending::Withdrawn });
    }
    assert_eq!(scripts.read("record"), "ran\n");
    assert!(soon(running).await.unwrap().success());
}

/// The file is locked until the group of the killed program's script is gone, not only until the program
/// is.
#[tokio::test]
async fn after_kill_9_the_next_script_starts_when_the_killed_one_is_gone() {
    let scripts = Scripts::new();
    let locks = scripts.path("locks");
    let killed = scripts.named_run(
        "killed",
        "trap '' TERM; echo $PPID > $DIR/guard; sh -c 'echo $$ > $0/pid; exec sleep 60' $DIR",
    );
    let mut program = start(&killed.script, &locks, End::AfterScript);
    let (member, guard) = (scripts.number("pid").await, scripts.number("guard").await);
    let next = scripts.named_run("next", &format!("[ ! -d /proc/{member} ] && echo ran > $DIR/next"));
    let request = Request::new(Kind::Vbd, Action::Remove, 1, 51712, next.script);

    // A stopped guard kills nobody: now the lock alone keeps the next script waiting.
    let guard_ = rustix::process::Pid::from_raw(guard).unwrap();
    rustix::process::kill_process(guard_, rustix::process::Signal::STOP).unwrap();
    program.kill().unwrap();
    program.wait().unwrap();
    let report = run(&locks, &request, Limits::default().queue(Duration::from_millis(500))).await;
    assert_eq!(report.ending, Ending::NotStarted, "{report}");
    assert!(report.to_string().contains("one of the same device"), "{report}");

    rustix::process::kill_process(guard_, rustix::process::Signal::CONT).unwrap();
    let report = run(&locks, &request, Limits::default()).await;
    assert!(report.success(), "{report}");
    assert!(scripts.path("next").exists());
    eventually("the guard is gone", || !exists(guard)).await;
    assert_eq!(files(&locks), 0);
}

#[tokio::test]
async fn a_daemon_does_not_keep_the_lock() {
    let scripts = Scripts::new();
    let request = scripts.run(
        "sh -c 'echo $$ > $0/member; exec sleep 60' $DIR & while [ ! -s $DIR/member ]; do sleep 0.02; done",
    );
    let locks = scripts.path("locks");
    for _ in 0..2 {
        assert!(run(&locks, &request, Limits::default().queue(Duration::from_secs(5))).await.success());
        let _daemon = crate::support::Daemon(scripts.number("member").await);
        fs::remove_file(scripts.path("member")).unwrap();
    }
}

#[tokio::test]
async fn without_a_lock_no_script_runs() {
    let scripts = Scripts::new();
    let request = scripts.run("touch $DIR/started");
    let file = scripts.file("file", "600", "");
    let report = run(&file, &request, Limits::default()).await;
    let text = format!("could not be started: the directory {} for locks: ", file.display());
    assert!(report.to_string().starts_with(&text), "{report}");
    // A directory in the place of the file: the lock itself cannot be had.
    let locks = scripts.path("locks");
    let name = format!("default-vbd-{}-{}", request.fe, request.devid);
    fs::create_dir_all(locks.join(&name)).unwrap();
    let report = run(&locks, &request, Limits::default()).await;
    let text = format!("could not be started: the device's lock {}: ", locks.join(name).display());
    assert!(report.to_string().starts_with(&text), "{report}");
    assert!(!scripts.path("started").exists());
}

/// Who does a script's work by itself.
#[tokio::test]
async fn whoever_holds_a_device_keeps_its_scripts_waiting_and_the_other_way_round() {
    let scripts = Scripts::new();
    let request = scripts.run("echo ran >> $DIR/record");
    let locks = scripts.path("locks");
    let runner = ScriptRunner::new().lock_dir(&locks);
    let (brief, never) = (Limits::default().queue(Duration::from_millis(100)), CancellationToken::new());
    let hold = |permit| soon(runner.hold(&request, &brief, &never, Box::pin(ready(permit))));
    let held = hold(true).await.unwrap();
    assert_eq!(run(&locks, &request, brief).await.ending, Ending::NotStarted);
    assert_eq!(hold(true).await.unwrap_err(), Ending::NotStarted);
    never.cancel();
    assert_eq!(hold(true).await.unwrap_err(), Ending::Aborted);
    drop(held);
    assert_eq!(files(&locks), 0);
    let never = CancellationToken::new();
    let refused = soon(runner.hold(&request, &brief, &never, Box::pin(ready(false)))).await;
    assert_eq!(refused.unwrap_err(), Ending::Withdrawn);
    assert_eq!(files(&locks), 0);
    assert!(run(&locks, &request, brief).await.success());
    assert_eq!(scripts.read("record"), "ran\n");
}
