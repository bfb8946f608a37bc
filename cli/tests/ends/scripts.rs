//! What a person is told of scripts, and which store these talk to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use tokio::process::Command;

use crate::scene::{Scene, code, explained, reported, soon, three_parts};

/// C1: a script that reports a failure and exits with 0.
#[tokio::test(flavor = "multi_thread")]
async fn c1_a_reported_failure_is_a_failure_with_the_scripts_own_words() {
    let scene = Scene::new().await;
    let keys = r#""$XENBUS_PATH/hotplug-error" "No such LUN" "$XENBUS_PATH/hotplug-status" error"#;
    let disk = scene.disk(&format!("xenstore-write {keys}; exit 0"));
    let (status, text) = explained(scene.command(&["block-attach", "1", &disk])).await;
    assert_eq!(status, Some(1), "{text}");
    three_parts(&text);
    assert!(text.contains("reported a failure (hotplug-status is error): No such LUN\n"), "{text}");
    assert_eq!(text.matches("No such LUN").count(), 1, "{text}");
    assert_eq!(text.matches("hotplug-status").count(), 1, "{text}");
    assert_eq!(scene.disk_is().await, (false, false));
    let (_, json) = reported(scene.command(&["block-attach", "1", &disk, "--json"])).await;
    assert_eq!((&json["ok"], &json["kind"]), (&false.into(), &"failed".into()), "{json}");
}

/// C3: whichever way this program was told where the store is, its scripts find the same.
#[tokio::test(flavor = "multi_thread")]
async fn c3_scripts_talk_to_the_store_that_this_program_uses() {
    let scene = Scene::new().await;
    let (folder, socket) = (scene.folder.path(), scene.socket());
    let seen = folder.join("seen");
    let keys = r#""$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected"#;
    let disk =
        scene.disk(&format!("echo \"$XENSTORED_PATH\" > {}; cd /; xenstore-write {keys}", seen.display()));
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
        command.args(args).current_dir(folder).env_remove("XENSTORED_PATH").env_remove("XENSTORED_RUNDIR");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let attach = ["block-attach", "1", &disk];
    let mut by_path = command(&attach);
    by_path.env("XENSTORED_PATH", &socket);
    let mut by_directory = command(&attach);
    by_directory.env("XENSTORED_RUNDIR", folder);
    let mut relative = command(&attach);
    relative.env("XENSTORED_PATH", "socket");
    let by_argument = command(&["--store", "socket", "block-attach", "1", &disk]);
    for (way, run) in
        [("path", by_path), ("directory", by_directory), ("relative", relative), ("argument", by_argument)]
    {
        let (status, text) = explained(run).await;
        assert_eq!((status, text.as_str()), (Some(0), ""), "{way}");
        assert_eq!(fs::read_to_string(&seen).unwrap(), format!("{}\n", socket.display()), "{way}");
        assert_eq!(code(scene.command(&["block-detach", "1", "xvda", "--force"])).await, Some(0), "{way}");
    }
}

/// C4: a script's output and name reach neither the terminal nor JSON raw, nor at length.
#[tokio::test(flavor = "multi_thread")]
async fn c4_what_a_script_prints_and_is_called_is_escaped_and_short() {
    let scene = Scene::new().await;
    let body = "printf '\\033[2J\\342\\200\\256'; head -c 20000 /dev/zero | tr '\\0' x; echo why; exit 3";
    let printable = |text: &str| text.chars().all(|letter| letter == '\n' || (' '..='~').contains(&letter));
    // In its add, and in a warning of its removal.
    let disk = scene.disk_with(body);
    let (status, text) = explained(scene.command(&["block-attach", "1", &disk, "--verbose"])).await;
    assert_eq!(status, Some(1));
    assert!(printable(&text) && text.len() < 3000, "{text:?}");
    assert_eq!(text.matches(r"\x1b[2J\u{202e}xxx").count(), 2, "{text}");
    assert_eq!(text.matches("xxxwhy").count(), 2, "{text}");
    let output =
        soon(scene.command(&["block-attach", "1", &disk, "--json"]).stdout(Stdio::piped()).output()).await;
    let json = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(printable(&json) && json.len() < 4000, "{json:?}");

    // A specification with a control character is refused; a mark that turns the direction of text is not.
    let odd = scene.folder.path().join("odd\u{202e}[2J");
    let disk = format!("vdev=xvda,script={0},target={0}", odd.display());
    for (args, wanted) in [
        (["block-attach", "1", &*disk], 1),
        (["block-attach", "\u{1b}[2J", &*disk], 1),
        (["block-attach", "1", "/d,raw,\u{1b}[2J\u{9b}1m,w"], 2),
        (["block-attach", "--wait", "\u{1b}[2J\u{9b}1m"], 2),
    ] {
        let (status, text) = explained(scene.command(&args)).await;
        assert_eq!(status, Some(wanted), "{text:?}");
        // Standard error is no terminal here, so the parser leaves some of it out.
        assert!(printable(&text) && (text.contains("[2J") || text.contains(r"\u{9b}1m")), "{text:?}");
    }
}

/// What cannot be started is named for what it is, with what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_cannot_be_started_is_told_with_what_to_do() {
    let scene = Scene::new().await;
    let script = scene.folder.path().join("faulty");
    let cases: [(&str, u32, &str, &str); 5] = [
        ("#!/bin/sh\n", 0o644, "the file is not executable", "chmod +x /"),
        ("#!/bin/bash\r\nexit 0\r\n", 0o755, "carriage return", "dos2unix /"),
        ("#!/no/such\n", 0o755, "its interpreter /no/such does not exist", "install the interpreter"),
        ("", 0o755, "the file is empty", "write /"),
        ("#!/usr/bin/env nosuch\n", 0o755, "exited with status 127: a program was not found: ", "install it"),
    ];
    for (text, mode, observed, hint) in cases {
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(mode)).unwrap();
        let image = scene.folder.path().join("d.img");
        let disk = format!("vdev=xvda,script={},target={}", script.display(), image.display());
        let (status, told) = explained(scene.command(&["block-attach", "1", &disk])).await;
        assert_eq!(status, Some(1), "{told}");
        let (before, after) = told.split_once("\n  hint: ").expect("three parts");
        assert!(before.contains(observed) && after.contains(hint), "{told}");
        _ = code(scene.command(&["block-detach", "1", "xvda", "--force"])).await;
        assert_eq!(scene.disk_is().await, (false, false), "{told}");
    }
}
