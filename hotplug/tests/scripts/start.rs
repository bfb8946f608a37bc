//! Scripts that cannot be started, or whose programs are missing: the fault is named for what it is.

use std::path::PathBuf;

use xen_hotplug::{Action, Ending, Kind, Request, SpawnFault};

use crate::support::{Scripts, request, run, run_with, runner};

/// What is wrong with a script that cannot be started.
async fn fault(request: &Request) -> (SpawnFault, String) {
    let report = run(request).await;
    assert!(!report.success() && report.duration.is_zero());
    match report.ending {
        Ending::SpawnFailed(error) => (error.fault(), error.to_string()),
        other => panic!("it was started: {other}"),
    }
}

#[tokio::test]
async fn failures_to_start_say_what_is_wrong() {
    let scripts = Scripts::new();
    let (missing, directory) = (scripts.path("missing"), scripts.path("directory"));
    std::fs::create_dir(&directory).unwrap();
    let plain = scripts.file("plain", "644", "#!/bin/sh\n");
    let orphan = scripts.file("orphan", "755", "#! /no/such/shell -e\n");
    let dull = scripts.file("dull", "755", &format!("#!{}\n", plain.display()));
    let dos = scripts.file("dos", "755", "#!/bin/bash\r\nexit 0\r\n");
    let empty = scripts.file("empty", "755", "");
    let below = plain.join("script");
    let expected: [(PathBuf, SpawnFault, &str); 9] = [
        (below, SpawnFault::NotFound, "there is no such file: a part of its path is no directory"),
        (missing, SpawnFault::NotFound, "there is no such file"),
        ("no-such-hotplug-script".into(), SpawnFault::NotFound, "there is no such file"),
        (directory, SpawnFault::NotAFile, "it is a directory"),
        (plain.clone(), SpawnFault::NotExecutable, "the file is not executable"),
        (orphan, SpawnFault::Interpreter, "its interpreter /no/such/shell does not exist"),
        (dull, SpawnFault::Interpreter, &format!("its interpreter {} is not executable", plain.display())),
        (
            dos,
            SpawnFault::LineEnds,
            r"its first line ends with a carriage return (CR LF, as DOS ends lines), so its interpreter /bin/bash\r does not exist",
        ),
        (empty, SpawnFault::Empty, "the file is empty"),
    ];
    for (script, kind, words) in expected {
        assert_eq!(fault(&request(&script)).await, (kind, words.to_owned()), "{}", script.display());
    }
    let nul = Request::new(Kind::Vif, Action::Add, 1, 0, "true").recorded("gatewaydev", "a\0b");
    let (kind, words) = fault(&nul).await;
    assert!(kind == SpawnFault::Other && words.contains("nul byte"), "{words}");
}

/// As the C library has it, and so every toolstack that starts scripts by it.
#[tokio::test]
#[cfg(target_env = "gnu")]
async fn a_script_without_an_interpreter_line_is_run_by_a_shell() {
    let script = Scripts::new();
    let report = run(&request(script.file("bare", "755", "echo bare\n"))).await;
    assert_eq!((report.success(), report.output.text().as_ref()), (true, "bare\n"));
}

#[tokio::test]
async fn a_program_that_the_script_needs_is_missing() {
    let scripts = Scripts::new();
    let report = run(&request(scripts.file("env", "755", "#!/usr/bin/env no-such-program\n"))).await;
    let words = report.to_string();
    assert!(words.starts_with("exited with status 127: a program was not found: "), "{words}");
    assert!(words.contains("no-such-program"), "{words}");
    let report = run(&scripts.run("$DIR; exit $?")).await;
    let words = report.to_string();
    assert!(words.starts_with("exited with status 126: a program could not be executed: "), "{words}");
}

#[tokio::test]
async fn a_place_without_locks_is_named() {
    let scripts = Scripts::new();
    let file = scripts.file("file\u{1b}[2J", "644", "");
    let report = run_with(&runner().lock_dir(file), &request("true")).await;
    let Ending::SpawnFailed(error) = &report.ending else { panic!("{report}") };
    assert_eq!(error.fault(), SpawnFault::Lock);
    assert!(
        error.to_string().starts_with("the directory /")
            && error.to_string().contains(r"file\x1b[2J for locks: ")
    );
}

#[tokio::test]
async fn a_name_of_control_characters_is_shown_escaped() {
    let script = Scripts::new().path("\u{1b}[2J\n\u{202e}x");
    let shown = request(&script).to_string();
    assert!(shown.ends_with(r"/\x1b[2J\n\u{202e}x add"), "{shown}");
}
