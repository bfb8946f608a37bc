//! What a script finds when it starts.

use std::collections::BTreeMap;
use std::fs::{self, File};

use nix::sys::signal::{SigSet, Signal};
use rustix::io::{FdFlags, fcntl_setfd};
use xen_hotplug::{Action, Kind, Request};

use crate::support::{Scripts, request, run, run_with, runner, stat};

fn variables(environ: &str) -> BTreeMap<String, String> {
    let pairs = environ.split_terminator('\0').map(|variable| variable.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `/proc/$$/environ` is what `exec` was given; `env` would show what the shell has added.
const DUMP: &str = r#"#!/bin/sh
dir=${0%/*}
printf '%s\0' "$@" > "$dir/args"
cat /proc/$$/environ > "$dir/environ"
"#;

#[tokio::test]
async fn arguments_and_environment_are_exact() {
    let scripts = Scripts::new();
    let script = scripts.file("vif-bridge", "755", DUMP);
    let request =
        Request::new(Kind::Vif, Action::Add, 3, 1, &script).recorded("gatewaydev", "$(reboot) eth0");
    let runner = runner().env("XENSTORED_PATH", "/run/other");
    assert!(run_with(&runner, &request).await.success());

    assert_eq!(scripts.read("args"), "online\0type_if=vif\0");
    let mut found = variables(&scripts.read("environ"));
    let path = found.remove("PATH").unwrap();
    for directory in ["/sbin", "/usr/sbin", "/bin", "/usr/bin"] {
        assert!(path.split(':').any(|of_path| of_path == directory), "{path} lacks {directory}");
    }
    let mut expected: BTreeMap<String, String> = [
        ("XENSTORED_PATH", "/run/other"),
        ("script", script.to_str().unwrap()),
        ("XENBUS_TYPE", "vif"),
        ("XENBUS_PATH", "backend/vif/3/1"),
        ("XENBUS_BASE_PATH", "backend"),
        ("netdev", "$(reboot) eth0"),
        ("vif", "vif3.1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let allowed = ["HOME", "TERM", "LANG"];
    expected.extend(allowed.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    assert_eq!(found, expected);
    assert!(std::env::vars().count() > expected.len(), "nothing is set that could have been inherited");
}

#[tokio::test]
async fn the_whole_environment_on_request() {
    let scripts = Scripts::new();
    let script = scripts.file("block", "755", DUMP);
    let runner = runner().inherit_environment(true);
    let request = Request::new(Kind::Vbd, Action::Remove, 3, 768, script).copy("/libxl/3/copy");
    assert!(run_with(&runner, &request).await.success());

    assert_eq!(scripts.read("args"), "remove\0");
    let found = variables(&scripts.read("environ"));
    assert_eq!(found["CARGO_MANIFEST_DIR"], env!("CARGO_MANIFEST_DIR"));
    assert_eq!(found["XENBUS_PATH"], "/libxl/3/copy");
}

#[tokio::test]
async fn a_session_of_its_own_and_nothing_to_read() {
    let scripts = Scripts::new();
    let run_ = scripts.run("readlink /proc/$$/fd/0; echo $$; cat; cat /proc/$$/stat");
    let report = run(&run_).await;
    let output = report.output.text();
    let lines: Vec<&str> = output.lines().collect();
    let [stdin, pid, line] = lines[..] else { panic!("{report}: {output}") };
    assert_eq!(stdin, "/dev/null");
    let fields: Vec<&str> = line.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[2..4], [pid, pid], "group and session of process {pid}");
    assert_ne!(stat("self").unwrap().2.to_string(), pid);
}

#[tokio::test]
async fn no_descriptor_is_inherited() {
    let scripts = Scripts::new();
    let leak = File::create(scripts.path("leak")).unwrap();
    fcntl_setfd(&leak, FdFlags::empty()).unwrap();
    let list = "for fd in /proc/$$/fd/*; do readlink $fd; done; true";

    let mut shell = std::process::Command::new("sh");
    let inherited = shell.args(["-c", list]).output().unwrap().stdout;
    assert!(String::from_utf8(inherited).unwrap().contains("/leak\n"), "the test does not leak");

    let report = run(&scripts.run(list)).await;
    assert!(report.success() && report.output.text().contains("/dev/null\n"), "{report}");
    assert!(!report.output.text().contains("/leak\n"), "{}", report.output.text());
}

/// One of the masks in a process's status.
fn mask(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    u64::from_str_radix(line.unwrap_or_else(|| panic!("no {name} in {status}")), 16).unwrap()
}

#[tokio::test]
async fn signals_are_as_a_shell_expects_them() {
    const SIGPIPE: u64 = 1 << (Signal::SIGPIPE as u64 - 1);
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_ne!(mask(&own, "SigBlk"), 0);
    assert_ne!(mask(&own, "SigIgn") & SIGPIPE, 0);

    // Not by way of a shell, which would clear the mask itself. `cat` then fails on the argument `add`.
    let scripts = Scripts::new();
    let cat = scripts.file("cat", "755", "#!/bin/cat /proc/self/status\n");
    let report = run(&request(cat)).await;
    assert_eq!(mask(&report.output.text(), "SigBlk"), 0);
    assert_eq!(mask(&report.output.text(), "SigIgn") & SIGPIPE, 0);
}

#[tokio::test]
async fn working_directory_and_umask_are_inherited() {
    let report = run(&Scripts::new().run("pwd -P; umask")).await;
    let output = report.output.text();
    let mut lines = output.lines();
    let own = std::env::current_dir().unwrap().canonicalize().unwrap();
    assert_eq!(lines.next(), own.to_str());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains(&format!("Umask:\t{}\n", lines.next().unwrap())), "{status}");
}

#[tokio::test]
async fn a_name_without_a_slash_is_searched_for() {
    assert!(run(&request("true")).await.success());
}
