//! The demo, as the README has it.

use std::io::Read;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
    command.arg("demo");
    command
}

#[test]
fn it_attaches_detaches_and_proves_it() {
    let output = demo().output().unwrap();
    let story = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    for part in [
        "backend/vbd/1/51712: 2 (InitWait) -> 4 (Connected)",
        "device/vif/0: 1 (Initialising) -> 4 (Connected)",
        "device/vbd/51712: 5 (Closing) -> 6 (Closed)",
        "backend/vif/1/0: gone",
    ] {
        assert!(story.contains(part), "no {part:?} in:\n{story}");
    }
    assert!(story.trim_end().ends_with("the store is as it was: 24 nodes, none of them of a device"));
}

#[test]
fn an_interrupt_ends_it_cleanly() {
    let mut child =
        demo().args(["--latency", "5"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut story = vec![0];
    stdout.read_exact(&mut story).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    stdout.read_to_end(&mut story).unwrap();
    let output = child.wait_with_output().unwrap();
    let (story, errors) = (String::from_utf8(story).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(story.contains("nothing of the devices is left"), "{story}");
    assert!(errors.contains("error: cannot attach ") && errors.contains("\n  hint: "), "{errors}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = demo().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
