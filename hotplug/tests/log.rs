//! What a script prints goes to the log, line by line. In a program of its own, because the log's
//! level is a matter of the whole program.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action, Kind, Limits, Request, Runner, ScriptRunner};

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn lines_go_to_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let lines = "echo one; printf half; sleep 0.1; printf ' and half\\nunfinished'; exit 7";
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let request = Request::new(Kind::Vbd, Action::Add, 1, 0, script);
    let runner = ScriptRunner::new().lock_dir(dir.path());
    let report = runner.run(&request, &Limits::default(), &CancellationToken::new()).await;
    assert_eq!(report.output.text(), "one\nhalf and half\nunfinished");

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let messages: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("xen_hotplug::process::output: ").map(|(_, text)| text))
        .collect();
    assert_eq!(messages, ["one", "half and half", "unfinished"], "{log}");
    assert!(log.contains("/script add"), "no name of the script in {log}");
    assert!(log.contains("script exited with status 7"), "{log}");
}
