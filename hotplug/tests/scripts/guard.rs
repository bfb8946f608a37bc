//! The end of the program that runs a script is the end of the script.

use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Ending, Limits, Runner};

use crate::program::{End, start, start_ignoring_child_deaths};
use crate::support::{Daemon, Scripts, eventually, exists, lives, living_members, run, runner, soon, stat};

/// Ignores what a script can ignore, in itself, a child and an orphan; and leaves a daemon in a session of
/// its own.
const STUBBORN: &str = "trap '' TERM HUP INT PIPE
    sh -c 'while :; do sleep 60; done' &
    sh -c 'sh -c \"echo \\$\\$ > $0/orphan; while :; do sleep 60; done\" &' $DIR
    setsid sh -c 'echo $$ > $0/daemon; exec sleep 60' $DIR &
    while [ ! -s $DIR/orphan ] || [ ! -s $DIR/daemon ]; do sleep 0.02; done
    echo $PPID > $DIR/guard
    echo $$ > $DIR/pid
    : > $DIR/ready
    while :; do sleep 60; done";

/// A program that runs a script; killed at the end of the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn the_group_dies(end: End, kill: impl FnOnce(&mut Child)) {
    let scripts = Scripts::new();
    let script = scripts.run(STUBBORN).script;
    let mut program = Program(start(&script, &scripts.path("locks"), end));
    let (leader, guard) = (scripts.number("pid").await, scripts.number("guard").await);
    let (orphan, daemon) = (scripts.number("orphan").await, Daemon(scripts.number("daemon").await));
    kill(&mut program.0);
    eventually("the group is dead", || living_members(leader).is_empty()).await;
    eventually("the guard is gone", || !lives(guard)).await;
    assert!(!lives(leader) && !lives(orphan), "{end:?}");
    assert!(lives(daemon.0), "a daemon of its own session was killed after {end:?}");
}

#[tokio::test]
async fn kill_9_of_the_program_leaves_no_process_of_the_group() {
    the_group_dies(End::AfterScript, |program| program.kill().unwrap()).await;
}

#[tokio::test]
async fn hangup_and_quit_of_the_program_leave_no_process_of_the_group() {
    for signal in [Signal::HUP, Signal::QUIT, Signal::TERM, Signal::INT] {
        the_group_dies(End::AfterScript, |program| {
            kill_process(Pid::from_child(program), signal).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn an_exit_without_drop_leaves_no_process_of_the_group() {
    the_group_dies(End::Exit, |_| {}).await;
}

#[tokio::test]
async fn an_abort_leaves_no_process_of_the_group() {
    the_group_dies(End::Abort, |_| {}).await;
}

#[tokio::test]
async fn a_panic_leaves_no_process_of_the_group() {
    the_group_dies(End::Panic, |_| {}).await;
}

/// A script that gives back what it has made when it is told to end can still do so, though nobody waits
/// for it any more.
#[tokio::test]
async fn a_script_may_clean_up_when_the_program_is_gone() {
    let scripts = Scripts::new();
    let body = "trap 'rm $DIR/made; exit' TERM; touch $DIR/made; echo $$ > $DIR/pid; sleep 60 & wait";
    let script = scripts.run(body).script;
    let mut program = Program(start(&script, &scripts.path("locks"), End::AfterScript));
    let leader = scripts.number("pid").await;
    program.0.kill().unwrap();
    eventually("the group is dead", || living_members(leader).is_empty()).await;
    assert!(!scripts.path("made").exists());
}

/// Two guards at a time: neither may hold the lifeline, the pipe or the lock of the other.
#[tokio::test]
async fn runs_at_once_do_not_hold_each_others_lifelines() {
    let scripts = Scripts::new();
    let body = "echo $PPID > $0.guard; echo $$ > $0.pid; until [ -e $0.go ]; do sleep 0.02; done";
    let mut tasks = Vec::new();
    let mut guards = Vec::new();
    for name in ["a", "b", "c"] {
        let request = scripts.named_run(name, body);
        tasks.push(tokio::spawn(async move { run(&request).await }));
        guards.push(scripts.number(&format!("{name}.guard")).await);
    }
    for guard in &guards {
        let fds = std::fs::read_dir(format!("/proc/{guard}/fd")).unwrap().flatten();
        let mut targets: Vec<_> =
            fds.map(|fd| std::fs::read_link(fd.path()).unwrap().display().to_string()).collect();
        targets.sort();
        let [lock, signals, lifeline] = &targets[..] else { panic!("{targets:?}") };
        assert!(lock.contains("/locks/default-vbd-"), "{targets:?}");
        assert_eq!(signals, "anon_inode:[signalfd]");
        assert!(lifeline.starts_with("socket:"), "{targets:?}");
    }
    // The lifeline of the first closes while the younger guards live.
    let leader = scripts.number("a.pid").await;
    tasks[0].abort();
    eventually("the first script is dead", || !exists(leader)).await;
    std::fs::write(scripts.path("b.go"), "").unwrap();
    std::fs::write(scripts.path("c.go"), "").unwrap();
    for task in tasks.drain(1..) {
        assert!(soon(task).await.unwrap().success());
    }
}

/// As another thread of the program might have forked a process right before the end.
#[tokio::test]
async fn a_copy_of_the_lifeline_in_another_process_does_not_keep_the_script_alive() {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let scripts = Scripts::new();
    let script = scripts.run(STUBBORN).script;
    let mut program = Program(start(&script, &scripts.path("locks"), End::AfterScript));
    let (leader, _daemon) = (scripts.number("pid").await, Daemon(scripts.number("daemon").await));
    let pidfd = pidfd_open(Pid::from_child(&program.0), PidfdFlags::empty()).unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", program.0.id())).unwrap().flatten();
    let numbers = fds.map(|fd| fd.file_name().to_str().unwrap().parse().unwrap());
    let copies: Vec<_> =
        numbers.map(|fd| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).unwrap()).collect();
    assert!(copies.len() > 3);
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    eventually("the group is dead", || living_members(leader).is_empty()).await;
    drop(copies);
}

#[tokio::test]
async fn kill_9_at_any_moment_of_the_start_leaves_no_process() {
    let scripts = Scripts::new();
    let script = scripts.run("echo $$ >> $DIR/pids; while :; do sleep 60; done").script;
    let name = script.to_str().unwrap().as_bytes();
    let started = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let command_lines =
            processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        command_lines.filter(|line| line.split(|byte| *byte == 0).any(|arg| arg == name)).count()
    };
    let mut program = Program(start(&script, &scripts.path("locks0"), End::AfterScript));
    let begin = std::time::Instant::now();
    eventually("it runs", || started() == 1).await;
    let usual = begin.elapsed();
    program.0.kill().unwrap();
    for round in 0..40_u32 {
        // Around the time that it took, each in its own directory of locks.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let locks = scripts.path(&format!("locks{round}"));
        let mut program = Program(start(&script, &locks, End::AfterScript));
        tokio::time::sleep(usual * round / 20).await;
        program.0.kill().unwrap();
        program.0.wait().unwrap();
    }
    eventually("all are dead", || started() == 0).await;
}

#[tokio::test]
async fn the_guard_leads_no_session_of_the_script() {
    let scripts = Scripts::new();
    let script = scripts.run("echo $$ > $DIR/pid; until [ -e $DIR/go ]; do sleep 0.02; done");
    let running =
        tokio::spawn(
            async move { runner().run(&script, &Limits::default(), &CancellationToken::new()).await },
        );
    let leader = scripts.number("pid").await;
    let (_, guard, group, session) = stat(&leader.to_string()).unwrap();
    assert_eq!((group, session), (leader, leader));
    let (_, parent, group, session) = stat(&guard.to_string()).unwrap();
    assert_eq!((group, session), (guard, guard));
    assert_eq!(parent.cast_unsigned(), std::process::id());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(lives(leader), "killed by a guard that looks for its program");
    std::fs::write(scripts.path("go"), "").unwrap();
    assert_eq!(soon(running).await.unwrap().ending, Ending::Exited(0));
}

/// For children of a program that ignores `SIGCHLD` the kernel keeps no status, and the script's shell
/// would inherit that.
#[tokio::test]
async fn a_program_that_ignores_child_deaths_learns_the_status() {
    let scripts = Scripts::new();
    let body = "grep SigIgn /proc/$PPID/status /proc/self/status > $DIR/guard_and_self
        grep SigIgn /proc/$(awk '/^PPid/ { print $2 }' /proc/$PPID/status)/status > $DIR/program
        (exit 3) || [ $? = 3 ]";
    let script = scripts.run(body).script;
    let mut program = Program(start_ignoring_child_deaths(&script, &scripts.path("locks")));
    assert!(program.0.wait().unwrap().success());
    let ignores = |line: &str| {
        let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
        mask & 1 << (libc::SIGCHLD - 1) != 0
    };
    assert!(ignores(scripts.read("program").trim_end()), "the program does not ignore it");
    let lines = scripts.read("guard_and_self");
    assert!(lines.lines().count() == 2 && !lines.lines().any(ignores), "{lines}");
}
