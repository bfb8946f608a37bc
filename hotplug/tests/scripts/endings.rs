//! How runs end, by themselves and by force; and who survives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Ending, Limits, Report, Request, Runner};

use crate::support::{Daemon, Scripts, eventually, exists, lives, living_members, run, runner, soon, stat};

/// A script running in a task, with limits of its own.
struct Running {
    task: JoinHandle<Report>,
    cancel: CancellationToken,
}

fn start(request: Request, limits: Limits) -> Running {
    let runner: Arc<dyn Runner> = Arc::new(runner());
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    Running { task: tokio::spawn(async move { runner.run(&request, &limits, &token).await }), cancel }
}

fn limits(deadline: Duration, grace: Duration) -> Limits {
    Limits::default().deadline(deadline).grace(grace)
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
    assert!(run(&scripts.run("echo $$ > $DIR/pid; echo $PPID > $DIR/guard")).await.success());
    assert!(!exists(scripts.number("pid").await));
    assert!(!exists(scripts.number("guard").await));
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
async fn a_status_is_not_lost_if_other_code_in_this_program_waits_for_any_child() {
    let scripts = Scripts::new();
    let running = start(scripts.run("echo $PPID > $DIR/guard; sleep 0.2; exit 7"), Limits::default());
    let guard = Pid::from_raw(scripts.number("guard").await).unwrap();
    // Blocks this thread, which is the runtime's only one: the runner cannot be faster.
    waitpid(Some(guard), WaitOptions::empty()).unwrap();
    assert_eq!(soon(running.task).await.unwrap().ending, Ending::Exited(7));
}

#[tokio::test]
async fn without_its_guard_the_script_dies() {
    let scripts = Scripts::new();
    let running = start(scripts.run("echo $$ > $DIR/pid; while :; do sleep 60; done"), limits(LONG, LONG));
    let leader = scripts.number("pid").await;
    let guard = stat(&leader.to_string()).unwrap().1;
    let name = std::fs::read_to_string(format!("/proc/{guard}/comm")).unwrap();
    assert_eq!(name, "hotplug-guard\n");
    kill_process(Pid::from_raw(guard).unwrap(), Signal::KILL).unwrap();
    let report = soon(running.task).await.unwrap();
    assert_eq!(report.ending, Ending::Lost);
    assert_eq!(report.to_string(), "was killed because the process that guards it was killed");
    eventually("the script is dead", || !lives(leader)).await;
    assert!(!exists(guard));
}

#[tokio::test]
async fn a_guard_heeds_no_other_signal() {
    let scripts = Scripts::new();
    let running = start(
        scripts.run("echo $PPID > $DIR/guard; until [ -e $DIR/go ]; do sleep 0.05; done"),
        limits(LONG, LONG),
    );
    let guard = Pid::from_raw(scripts.number("guard").await).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::ALARM] {
        kill_process(guard, signal).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(lives(guard.as_raw_pid()));
    std::fs::write(scripts.path("go"), "").unwrap();
    assert!(soon(running.task).await.unwrap().success());
}

/// What loses its parent in the group becomes the guard's child. The guard must not wait for such a
/// one when the script has ended by itself, and must reap it meanwhile.
#[tokio::test]
async fn orphans_of_the_group_are_reaped_while_the_script_runs() {
    let scripts = Scripts::new();
    let script = scripts.run(
        "sh -c 'sh -c \"echo \\$\\$ > $0/orphan; sleep 0.3\" & sleep 0.1' $DIR
        echo $PPID > $DIR/guard
        until [ -e $DIR/go ]; do sleep 0.05; done",
    );
    let running = start(script, limits(LONG, LONG));
    let (orphan, guard) = (scripts.number("orphan").await, scripts.number("guard").await);
    if let Some((_, parent, ..)) = stat(&orphan.to_string()) {
        assert_eq!(parent, guard);
    }
    eventually("the orphan is reaped", || !exists(orphan)).await;
    assert!(lives(guard));
    std::fs::write(scripts.path("go"), "").unwrap();
    assert!(soon(running.task).await.unwrap().success());
}

#[tokio::test]
async fn a_script_that_ends_as_it_is_cancelled_has_ended_by_itself_or_was_aborted_whole() {
    let scripts = Scripts::new();
    for round in 0..20 {
        let script = scripts.named_run(
            &format!("script{round}"),
            "sh -c 'echo $$ > $0.member; exec sleep 60' $0 &
            while [ ! -s $0.member ]; do sleep 0.01; done
            : > $0.ready; sleep 0.02; exit 5",
        );
        let running = start(script, limits(LONG, LONG));
        let member = scripts.number(&format!("script{round}.member")).await;
        let member = Daemon(member);
        eventually("ready", || scripts.path(&format!("script{round}.ready")).exists()).await;
        tokio::time::sleep(Duration::from_millis(10 + round)).await;
        running.cancel.cancel();
        match soon(running.task).await.unwrap().ending {
            // The member was left on purpose.
            Ending::Exited(5) => assert!(lives(member.0)),
            Ending::Aborted => assert!(!lives(member.0)),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn limits_of_the_longest_duration_mean_for_ever_and_do_not_panic() {
    for longest in [Duration::MAX, Duration::from_secs(u64::MAX / 2), Duration::from_secs(1 << 40)] {
        let scripts = Scripts::new();
        let limits = Limits::default().deadline(longest).grace(longest).queue(longest);
        assert!(soon(start(scripts.run("sleep 0.3"), limits).task).await.unwrap().success());
        // The grace period, too.
        let script =
            scripts.named_run("graceful", "trap 'sleep 0.3; echo bye; exit' TERM; : > $DIR/ready; sleep 60");
        let running = start(script, limits);
        eventually("ready", || scripts.path("ready").exists()).await;
        // The shell may come to its sleep a little later.
        tokio::time::sleep(Duration::from_millis(200)).await;
        running.cancel.cancel();
        let report = soon(running.task).await.unwrap();
        assert_eq!(report.ending, Ending::Aborted);
        assert!(report.output.text().ends_with("bye\n"), "{}", report.output.text());
    }
}
