//! How runs end, by themselves and by force; and who survives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotplug::{Ending, Limits, Report, Runner, ScriptRun, ScriptRunner};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Daemon, Scripts, eventually, exists, lives, living_members, run, soon};

/// A script running in a task, with limits of its own.
struct Running {
    task: JoinHandle<Report>,
    cancel: CancellationToken,
}

fn start(run: ScriptRun, limits: Limits) -> Running {
    let runner: Arc<dyn Runner> = Arc::new(ScriptRunner::new());
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    Running { task: tokio::spawn(async move { runner.run(&run, &limits, &token).await }), cancel }
}

fn limits(deadline: Duration, grace: Duration) -> Limits {
    Limits { deadline, grace, ..Limits::default() }
}

/// Time enough for a script to come to the point where it sleeps.
const DEADLINE: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn exit_statuses() {
    for status in [0, 1, 255] {
        let report = run(&Scripts::new().run(&format!("exit {status}"))).await;
        assert_eq!(report.ending, Ending::Exited(status));
        assert_eq!(report.success(), status == 0);
    }
}

#[tokio::test]
async fn death_by_a_signal() {
    let report = run(&Scripts::new().run("ulimit -c 0; kill -SEGV $$")).await;
    assert_eq!(report.ending, Ending::Signalled(11));
    assert_eq!(report.to_string(), "was killed by SIGSEGV");
}

#[tokio::test]
async fn a_finished_script_leaves_no_zombie() {
    let scripts = Scripts::new();
    assert!(run(&scripts.run("echo $$ > $DIR/pid")).await.success());
    assert!(!exists(scripts.number("pid").await));
}

#[tokio::test]
async fn at_the_deadline_the_group_dies_even_if_it_ignores_term() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "echo $$ > $DIR/pid
        sleep 60 &
        sh -c 'trap \"\" TERM; echo hung; sleep 60' &
        trap '' TERM
        while :; do sleep 60; done",
    );
    let running = start(script, limits(DEADLINE, Duration::from_millis(300)));
    let report = soon(running.task).await.unwrap();
    assert_eq!(report.ending, Ending::TimedOut);
    assert_eq!(report.to_string(), "did not finish within 2 s and was killed with its process group: hung");
    let leader = scripts.number("pid").await;
    assert_eq!(living_members(leader), [""; 0]);
    assert!(!exists(leader));
}

#[tokio::test]
async fn members_that_outlive_their_leader_are_killed() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "echo $$ > $DIR/pid
        sh -c 'trap \"\" TERM; echo $$ > $DIR/stubborn; while :; do sleep 60; done' &
        sleep 60",
    );
    let running = start(script, limits(LONG, Duration::from_millis(300)));
    let (leader, stubborn) = (scripts.number("pid").await, scripts.number("stubborn").await);
    running.cancel.cancel();
    assert_eq!(soon(running.task).await.unwrap().ending, Ending::Aborted);
    assert_eq!(living_members(leader), [""; 0]);
    assert!(!lives(stubborn));
}

#[tokio::test]
async fn the_grace_period_is_for_all_members_and_ends_with_the_last() {
    let scripts = Scripts::new();
    // The shells' traps run when what they wait for has ended, by the same signal.
    let script = scripts.run(
        "sh -c 'trap \"sleep 0.5; echo cleaned up; exit\" TERM; echo $$ > $DIR/member; sleep 60' &
        trap 'echo bye; exit' TERM
        sleep 60",
    );
    let start_ = Instant::now();
    let running = start(script, limits(LONG, LONG));
    scripts.number("member").await;
    // The leader may come to its trap a little later than the member.
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.cancel.cancel();
    let report = soon(running.task).await.unwrap();
    assert_eq!(report.ending, Ending::Aborted);
    // Some shells add that what they waited for was terminated.
    let output = report.output.text();
    assert!(output.contains("bye\n") && output.ends_with("cleaned up\n"), "{output}");
    assert!(start_.elapsed() < LONG / 2);
}

#[tokio::test]
async fn cancelled_before_it_starts() {
    let scripts = Scripts::new();
    let running = start(scripts.run("touch $DIR/started"), Limits::default());
    running.cancel.cancel();
    let report = soon(running.task).await.unwrap();
    assert_eq!(report.ending, Ending::Aborted);
    assert!(!scripts.path("started").exists());
}

#[tokio::test]
async fn dropping_the_future_kills_the_group_and_leaves_no_zombie() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "trap '' TERM
        sh -c 'trap \"\" TERM; echo $$ > $DIR/member; while :; do sleep 60; done' &
        echo $$ > $DIR/pid
        while :; do sleep 60; done",
    );
    let running = start(script, Limits::default());
    let (leader, member) = (scripts.number("pid").await, scripts.number("member").await);
    assert!(lives(member));
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());
    eventually("the group is dead", || living_members(leader).is_empty()).await;
    eventually("the leader is reaped", || !exists(leader)).await;
}

#[tokio::test]
async fn dropping_the_future_while_it_terminates_kills_the_group() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "sh -c 'trap \"echo told > $DIR/told\" TERM; echo $$ > $DIR/member; while :; do sleep 1; done' &
        echo $$ > $DIR/pid
        exec sleep 60",
    );
    let running = start(script, limits(LONG, LONG));
    let (leader, member) = (scripts.number("pid").await, scripts.number("member").await);
    running.cancel.cancel();
    eventually("the member got SIGTERM", || scripts.path("told").exists()).await;
    assert!(lives(member));
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());
    eventually("the group is dead", || living_members(leader).is_empty()).await;
    eventually("the leader is reaped", || !exists(leader)).await;
}

#[tokio::test]
async fn a_daemon_that_holds_the_pipe_delays_nothing_and_lives_on() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "setsid sh -c 'echo $$ > $DIR/daemon; exec sleep 60' &
        sh -c 'echo $$ > $DIR/member; exec sleep 60' &
        while [ ! -s $DIR/daemon ] || [ ! -s $DIR/member ]; do sleep 0.05; done
        echo done",
    );
    let report = soon(run(&script)).await;
    assert!(report.success(), "{report}");
    assert_eq!(report.output.text(), "done\n");
    // What a script leaves when it ends by itself is not killed, be it in the group or not.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for name in ["daemon", "member"] {
        let daemon = Daemon(scripts.number(name).await);
        assert!(lives(daemon.0), "the {name} is dead");
    }
}

#[tokio::test]
async fn a_daemon_outside_the_group_survives_the_deadline() {
    let scripts = Scripts::new();
    let script = scripts.run("setsid sh -c 'echo $$ > $DIR/daemon; exec sleep 60' & sleep 60");
    let running = start(script, limits(DEADLINE, LONG));
    let daemon = Daemon(scripts.number("daemon").await);
    assert_eq!(soon(running.task).await.unwrap().ending, Ending::TimedOut);
    assert!(lives(daemon.0));
}

#[tokio::test]
async fn a_status_taken_by_others_is_reported_as_lost() {
    let scripts = Scripts::new();
    let running = start(scripts.run("echo $$ > $DIR/pid; sleep 0.2"), Limits::default());
    let leader = Pid::from_raw(scripts.number("pid").await).unwrap();
    // Blocks this thread, which is the runtime's only one: the runner cannot be faster.
    waitpid(Some(leader), WaitOptions::empty()).unwrap();
    let report = soon(running.task).await.unwrap();
    assert_eq!(report.ending, Ending::Lost);
    assert!(!report.success());
}
