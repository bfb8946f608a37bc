//! `xendev store`: the life of the socket, and that a store is behind it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xs_client::{Client, Config};

fn store(socket: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
    command.args(["store", "--socket"]).arg(socket).args(options);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A store that has told that it is ready; it is killed if the test fails.
struct Running {
    child: Child,
    line: String,
}

impl Running {
    fn start(socket: &Path, options: &[&str]) -> Self {
        let mut child = store(socket, options).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { child, line }
    }

    /// Ends it, and returns the exit status and all that was on standard error.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let code = self.child.wait().unwrap().code();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (code, errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended, as it should have.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[tokio::test]
async fn programs_share_it_until_a_signal_ends_it() {
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let running = Running::start(&socket, &[]);
        assert_eq!(running.line, format!("serving a store at {}\n", socket.display()));
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

        let connect = || Client::connect_unix(&socket, Config::default());
        let (one, other) = (connect().await.unwrap(), connect().await.unwrap());
        let path = xs_client::Path::new("/a/b").unwrap();
        one.write(&path, "value").await.unwrap();
        assert_eq!(&other.read(&path).await.unwrap()[..], b"value");

        assert_eq!(running.end(signal), (Some(0), String::new()));
        assert!(!socket.exists());
    }
}

#[test]
fn the_mode_and_the_line_are_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let running = Running::start(&socket, &["--mode", "660", "--json"]);
    let line: Value = serde_json::from_str(&running.line).unwrap();
    assert_eq!(
        (line["pid"].as_u64(), line["socket"].as_str()),
        (Some(running.child.id().into()), socket.to_str())
    );
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    running.end(Signal::TERM);

    for mode in ["1777", "rw", "-1"] {
        let output = store(&socket, &["--mode", mode]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{mode}");
    }
}

#[test]
fn quiet_prints_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut child = store(&socket, &["--quiet"]).spawn().unwrap();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(0), vec![], vec![]));
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let running = Running::start(&socket, &[]);
    assert!(running.line.starts_with("serving "));
    assert_eq!(running.end(Signal::TERM).0, Some(0));
}

#[test]
fn what_is_in_use_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |socket: &Path, says: &str| {
        let output = store(socket, &[]).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for part in ["error: cannot serve a store at /", "\n  observed: ", "\n  hint: ", says] {
            assert!(errors.contains(part), "no {part:?} in:\n{errors}");
        }
    };
    let live = folder.path().join("live");
    let _listener = UnixListener::bind(&live).unwrap();
    refused(&live, "somebody serves that socket");
    assert!(live.exists());

    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    refused(&file, "no socket");
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    refused(&folder.path().join("no/such/folder"), "No such file");
}

#[test]
fn the_socket_of_a_successor_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let running = Running::start(&socket, &[]);
    fs::remove_file(&socket).unwrap();
    let _successor = UnixListener::bind(&socket).unwrap();
    assert_eq!(running.end(Signal::TERM).0, Some(0));
    assert!(socket.exists());
}
