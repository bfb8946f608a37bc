//! How runs end: by signals, with pipes that break or that nobody reads, on a store that does not
//! answer, and with limits that no clock can say. Each test is named after the finding that it
//! keeps away: A for ends of the process and of its pipes, C for what a script says, D9 for errors that were
//! not told.

mod scene;
mod scripts;
mod sets;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use scene::{
    Scene, appears, broken, code, end, explained, full, reported, send, soon, stdio, three_parts, xendev,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::time::sleep;

const GONE: (bool, bool) = (false, false);
const ATTACHED: (bool, bool) = (true, false);

#[tokio::test(flavor = "multi_thread")]
async fn a1_every_signal_that_asks_to_end_rolls_back() {
    let scene = Scene::new().await;
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
        let (disk, runs) = scene.slow_disk();
        let mut child = scene.command(&["block-attach", "1", &disk]).spawn().unwrap();
        appears(&runs).await;
        send(&child, signal);
        assert_eq!(end(&mut child).await.code(), Some(4), "{signal:?}");
        assert_eq!(scene.disk_is().await, GONE, "{signal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a1_the_two_signals_of_a_closing_terminal_are_one() {
    let scene = Scene::new().await;
    let (disk, runs) = scene.slow_disk();
    let mut child = scene.command(&["block-attach", "1", &disk]).spawn().unwrap();
    appears(&runs).await;
    send(&child, Signal::HUP);
    sleep(Duration::from_millis(5)).await;
    send(&child, Signal::CONT);
    send(&child, Signal::HUP);
    assert_eq!(end(&mut child).await.code(), Some(4));
    assert_eq!(scene.disk_is().await, GONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a2_a_second_signal_of_any_kind_stops_at_once() {
    let scene = Scene::new().await;
    let removing = scene.folder.path().join("removing");
    let adding = scene.folder.path().join("adding");
    let disk = scene.disk_with(&format!(
        "case $1 in add) touch {};; remove) touch {};; esac\nexec sleep 20",
        adding.display(),
        removing.display()
    ));
    let mut child = scene.command(&["block-attach", "1", &disk]).stderr(Stdio::piped()).spawn().unwrap();
    appears(&adding).await;
    send(&child, Signal::HUP);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = soon(lines.next_line()).await.unwrap().unwrap_or_default();
    assert!(first.starts_with("cancelling"), "{first}");
    appears(&removing).await;
    // So long, signals count as one.
    sleep(Duration::from_millis(300)).await;
    send(&child, Signal::QUIT);
    assert_eq!(end(&mut child).await.code(), Some(4));
    let second = soon(lines.next_line()).await.unwrap().unwrap_or_default();
    assert_eq!(second, "error: stopped at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_a_reader_that_leaves_in_mid_operation_does_not_end_it() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    let mut child =
        scene.command(&["block-attach", "-v", "1", &disk]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    soon(stderr.read_u8()).await.unwrap();
    drop(stderr);
    assert_eq!(end(&mut child).await.code(), Some(0));
    assert_eq!(scene.disk_is().await, ATTACHED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_a_standard_error_without_reader_costs_the_output_alone() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    let mut attach = scene.command(&["block-attach", "-v", "1", &disk]);
    attach.stderr(stdio(broken()));
    assert_eq!(code(attach).await, Some(0));
    assert_eq!(scene.disk_is().await, ATTACHED);
    let mut again = scene.command(&["block-attach", "-v", "1", &disk]);
    again.stderr(stdio(broken()));
    assert_eq!(code(again).await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_a_cancellation_does_not_depend_on_standard_error() {
    let scene = Scene::new().await;
    let (_reader, writer) = full();
    for stderr in [broken(), writer] {
        let (disk, runs) = scene.slow_disk();
        let mut attach = scene.command(&["block-attach", "1", &disk]);
        let mut child = attach.stderr(stdio(stderr)).spawn().unwrap();
        appears(&runs).await;
        send(&child, Signal::TERM);
        assert_eq!(end(&mut child).await.code(), Some(4));
        assert_eq!(scene.disk_is().await, GONE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_a_standard_error_that_nobody_reads_does_not_hold_up_an_operation() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    let (_reader, writer) = full();
    let mut attach = scene.command(&["block-attach", "-v", "1", &disk]);
    attach.stderr(stdio(writer));
    assert_eq!(code(attach).await, Some(0));
    assert_eq!(scene.disk_is().await, ATTACHED);
}

/// The line that moves on a terminal is drawn by no thread that an operation needs.
#[tokio::test(flavor = "multi_thread")]
async fn a4_a_terminal_that_is_stopped_or_hung_up_does_not_hold_up_an_operation() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Action, tcflow};
    for hung_up in [false, true] {
        let scene = Scene::new().await;
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let terminal = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
        let stderr = terminal.try_clone().unwrap();

        let runs = scene.folder.path().join("runs");
        let disk = scene.disk(&format!("touch {}; sleep 1", runs.display()));
        let mut attach = scene.command(&["block-attach", "1", &disk]);
        let mut child = attach.stderr(stdio(stderr)).spawn().unwrap();
        appears(&runs).await;
        let mut screen = [0; 64];
        assert!(File::from(ours.as_fd().try_clone_to_owned().unwrap()).read(&mut screen).unwrap() > 0);
        if hung_up {
            drop(ours);
        } else {
            tcflow(&terminal, Action::OOff).unwrap();
        }
        assert_eq!(end(&mut child).await.code(), Some(0), "hung up: {hung_up}");
        assert_eq!(scene.disk_is().await, ATTACHED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_standard_output_without_reader_does_not_hide_the_outcome() {
    let scene = Scene::new().await;
    let disk = "/nonexistent,raw,xvda,w";
    for args in [&["block-attach", "--json", "1", disk][..], &["block-list", "4242"]] {
        let mut failing = scene.command(args);
        failing.stdout(stdio(broken()));
        let (code, text) = explained(failing).await;
        assert_eq!(code, Some(1), "{text}");
        three_parts(&text);
    }
    let mut list = scene.command(&["block-list", "1"]);
    list.stdout(stdio(broken()));
    assert_eq!(explained(list).await, (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_report_that_nobody_reads_does_not_hang() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    let (_reader, writer) = full();
    let mut attach = scene.command(&["block-attach", "--json", "1", &disk]);
    attach.stdout(stdio(writer));
    let (code, text) = explained(attach).await;
    assert_eq!(code, Some(0));
    assert!(text.starts_with("warning: ") && text.contains("took nothing"), "{text}");
    assert_eq!(scene.disk_is().await, ATTACHED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_signal_ends_the_wait_for_a_reader() {
    let scene = Scene::new().await;
    for (args, status) in [
        (&["block-attach", "--json", "1", "/nonexistent,raw,xvda,w"][..], 1),
        (&["block-list", "--json", "4242"], 4),
    ] {
        let (_reader, writer) = full();
        let mut command = scene.command(args);
        let mut child = command.stdout(stdio(writer)).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        while let Some(line) = soon(lines.next_line()).await.unwrap()
            && !line.starts_with("  hint: ")
        {}
        send(&child, Signal::TERM);
        assert_eq!(end(&mut child).await.code(), Some(status), "{args:?}");
        assert_eq!(soon(lines.next_line()).await.unwrap(), None, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_full_disk_is_told_and_is_the_failure_of_a_listing_alone() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    for (args, status) in [
        (&["block-list", "1"][..], 1),
        (&["block-list", "--json", "1"], 1),
        (&["block-attach", "--json", "1", &disk], 0),
        (&["block-attach", "--json", "1", &disk], 1),
        (&["--help"], 1),
    ] {
        let mut command = scene.command(args);
        command.stdout(Stdio::from(File::options().write(true).open("/dev/full").unwrap()));
        let (code, text) = explained(command).await;
        assert_eq!(code, Some(status), "{args:?}: {text}");
        // Nothing has failed where the exit status says that it is done.
        if status == 0 {
            let done = "warning: cannot write to standard output: ";
            assert!(text.starts_with(done) && text.ends_with("is done\n"), "{args:?}: {text}");
            continue;
        }
        assert!(text.contains("error: cannot write to standard output\n"), "{args:?}: {text}");
        three_parts(&text);
    }
    assert_eq!(scene.disk_is().await, ATTACHED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_closed_descriptors_change_no_outcome() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    let attach: &[&str] = &["block-attach", "-v", "--json", "1", &disk];
    for (args, closing, status) in [
        (attach, "<&- >&- 2>&-", 0),
        (attach, ">&-", 1),
        (attach, "2>&-", 1),
        (&["block-list", "1"], ">&-", 0),
        (&["block-list", "4242"], ">&- 2>&-", 1),
        (&["block-list"], "2>&-", 2),
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$@\" {closing}"), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_xendev")).arg("--store").arg(scene.socket()).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        assert_eq!(code(command).await, Some(status), "{args:?} {closing}");
    }
    assert_eq!(scene.disk_is().await, ATTACHED);
}

/// Commands that are started on a store which accepts connections and answers nothing.
const ON_A_MUTE_STORE: [&[&str]; 8] = [
    &["block-attach", "guest", "/dev/null,raw,xvda,w"],
    &["block-detach", "1", "xvda"],
    &["network-attach", "1"],
    &["network-detach", "1", "00:16:3e:00:00:01"],
    &["block-list", "1", "2"],
    &["attach-all", "guest", "/dev/null"],
    &["list", "1", "2"],
    &["wait", "/local/domain/1/device/vbd/51712", "4"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_store_that_does_not_answer_is_given_up_at_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    for args in ON_A_MUTE_STORE {
        let mut command = xendev(&folder.path().join("socket"), args);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let connection = soon(listener.accept()).await.unwrap();
        send(&child, Signal::INT);
        let mut text = String::new();
        soon(child.stderr.take().unwrap().read_to_string(&mut text)).await.unwrap();
        assert_eq!(end(&mut child).await.code(), Some(4), "{args:?}: {text}");
        three_parts(&text);
        assert!(text.contains("  observed: cancelled"), "{text}");
        drop(connection);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_signal_that_is_ignored_by_inheritance_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' INT HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_xendev"), "--store"]);
    command.arg(folder.path().join("socket")).args(ON_A_MUTE_STORE[0]);
    let mut child = command.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let _connection = soon(listener.accept()).await.unwrap();

    let status = fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let mask = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    };
    let bit = |signal: Signal| 1 << (signal.as_raw() - 1);
    let (ignored, handled) = (bit(Signal::INT) | bit(Signal::HUP), bit(Signal::QUIT) | bit(Signal::TERM));
    assert_eq!(mask("SigIgn:") & (ignored | handled), ignored);
    assert_eq!(mask("SigCgt:") & (ignored | handled), handled);

    send(&child, Signal::INT);
    send(&child, Signal::TERM);
    assert_eq!(end(&mut child).await.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_limits_that_no_clock_can_say_are_for_ever() {
    let scene = Scene::new().await;
    let disk = scene.good_disk();
    for limit in ["1e19", "1e300", "inf", "18446744073709551615"] {
        let limits = ["--backend-timeout", limit, "--script-timeout", limit, "--connect-timeout", limit];
        let attach = [&["block-attach", "1", &disk][..], &limits].concat();
        assert_eq!(explained(scene.command(&attach)).await, (Some(0), String::new()), "{limit}");
        let state = "/local/domain/0/backend/vbd/1/51712";
        let wait = ["wait", state, "InitWait", "--timeout", limit];
        assert_eq!(explained(scene.command(&wait)).await, (Some(0), String::new()), "{limit}");
        // The guest has no driver that would let go.
        let detach = ["block-detach", "--force", "1", "xvda"];
        assert_eq!(code(scene.command(&detach)).await, Some(0), "{limit}");
    }
    for limit in ["nan", "-1", "-inf", "1 s", ""] {
        let limit = format!("--timeout={limit}");
        assert_eq!(code(scene.command(&["block-detach", "1", "xvda", &limit])).await, Some(2), "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d9_quiet_prints_no_warnings_and_json_has_them() {
    let scene = Scene::new().await;
    let disk = scene.disk("exit 0");
    let detach = ["block-detach", "--force", "1", "xvda"];
    let (code, text) = explained(scene.command(&["block-attach", "1", &disk])).await;
    assert_eq!((code, text.contains("warning: ")), (Some(0), true), "{text}");
    scene::code(scene.command(&detach)).await;
    assert_eq!(explained(scene.command(&["block-attach", "-q", "1", &disk])).await, (Some(0), String::new()));
    let (code, text) = explained(scene.command(&["block-attach", "-q", "1", &disk])).await;
    assert_eq!(code, Some(1));
    three_parts(&text);
    scene::code(scene.command(&detach)).await;
    let (_, report) = reported(scene.command(&["block-attach", "-q", "--json", "1", &disk])).await;
    assert_eq!(report["warnings"].as_array().map(Vec::len), Some(1), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn d9_errors_before_the_operation_are_told_in_json() {
    let scene = Scene::new().await;
    let nowhere = scene.folder.path().join("nowhere");
    let good = scene.good_disk();
    let ours = scene.socket();
    for (socket, args, status) in [
        (&ours, &["block-attach", "1", "/d,raw,xvd,w"][..], 2),
        (&ours, &["network-attach", "1", "mac=zz"], 2),
        (&ours, &["block-detach", "1", "nodisk"], 2),
        (&ours, &["network-detach", "1", "00:zz"], 2),
        (&ours, &["wait", "not//a/path", "4"], 2),
        (&ours, &["wait", "/a", "Nowhere"], 2),
        (&ours, &["block-attach", "1"], 2),
        (&ours, &["block-attach", "4242", &good], 1),
        (&ours, &["block-detach", "nobody", "xvda"], 1),
        (&ours, &["block-list", "4242"], 1),
        (&ours, &["wait", "/a", "4", "--timeout", "0"], 3),
        (&nowhere, &["block-attach", "1", &good], 1),
        (&nowhere, &["network-list", "1"], 1),
        (&nowhere, &["wait", "/a", "4"], 1),
    ] {
        let (code, report) = reported(xendev(socket, &[args, &["--json"]].concat())).await;
        assert_eq!(code, Some(status), "{args:?}: {report}");
        assert_eq!(report["ok"], Value::Bool(false), "{args:?}: {report}");
        let told = (report["error"].as_str(), report["observed"][0].as_str(), report["hint"].as_str());
        let (Some(error), Some(observed), Some(hint)) = told else { panic!("{args:?}: {report}") };
        assert!(!error.is_empty() && !observed.is_empty() && !hint.is_empty(), "{args:?}: {report}");
    }
    let (code, several) = reported(scene.command(&["block-list", "--json", "4242", "1"])).await;
    assert_eq!((code, several.as_array().map(Vec::len)), (Some(1), Some(1)));
    assert_eq!(several[0]["ok"], Value::Bool(false));
}
