//! Ends of `attach-all` and of `list`: several devices, one outcome.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::scene::{Scene, appears, broken, code, end, explained, reported, send, stdio, three_parts};

/// A configuration file with disks `xvda`, `xvdb`, ...: one with each of these scripts' bodies for `add`.
fn file(scene: &Scene, adds: &[&str], rest: &str) -> PathBuf {
    let disks: Vec<String> = adds
        .iter()
        .zip('a'..)
        .map(|(add, letter)| {
            let disk = scene.disk(add).replace("vdev=xvda", &format!("vdev=xvd{letter}"));
            let script = scene.folder.path().join("script");
            let own = script.with_file_name(format!("script-{letter}"));
            fs::rename(&script, &own).unwrap();
            format!("  '{}',\n", disk.replace(script.to_str().unwrap(), own.to_str().unwrap()))
        })
        .collect();
    let path = scene.folder.path().join("vm.cfg");
    fs::write(&path, format!("name = 'vm'\ndisk = [\n{}]\n{rest}\n", disks.concat())).unwrap();
    path
}

const GOOD: &str =
    r#"xenstore-write "$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected"#;

/// How many devices the guest has, by `list`.
async fn there(scene: &Scene) -> usize {
    reported(scene.command(&["list", "--json", "1"])).await.1.as_array().unwrap().len()
}

fn attach_all<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["attach-all", "--no-xl-conf", "1", file], more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_rolls_back_all_of_them() {
    let scene = Scene::new().await;
    let runs = scene.folder.path().join("runs");
    let slow = format!("touch {}; exec sleep 20", runs.display());
    let file = file(&scene, &[GOOD, &slow], "");
    let file = file.to_str().unwrap();
    for stderr_is_read in [true, false] {
        let mut command = scene.command(&attach_all(file, &[]));
        if !stderr_is_read {
            command.stderr(stdio(broken()));
        }
        let mut child = command.spawn().unwrap();
        appears(&runs).await;
        send(&child, Signal::TERM);
        assert_eq!((end(&mut child).await.code(), there(&scene).await), (Some(4), 0));
        fs::remove_file(&runs).unwrap();
    }
}

/// The end of a deadline is a timeout, whatever it ends, unless something had failed before.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_one_of_all_that_is_done() {
    let scene = Scene::new().await;
    let slow = file(&scene, &[GOOD, "exec sleep 20"], "vif = [ 'bridge=x' ]");
    let slow = slow.to_str().unwrap();
    let (status, text) = explained(scene.command(&attach_all(slow, &["--deadline", "1"]))).await;
    assert_eq!((status, there(&scene).await), (Some(3), 0), "{text}");
    assert!(text.contains("the deadline of all") && !text.contains("cancelled"), "{text}");
    let (status, report) = reported(scene.command(&attach_all(slow, &["--deadline", "1", "--json"]))).await;
    assert_eq!((status, &report["code"]), (Some(3), &"deadline".into()), "{report}");

    // Nor may the file be read for ever.
    let fifo = scene.folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let fifo = fifo.to_str().unwrap();
    let (status, report) = reported(scene.command(&attach_all(fifo, &["--deadline", "0.2", "--json"]))).await;
    assert_eq!((status, &report["code"]), (Some(3), &"deadline".into()), "{report}");

    let failing = file(&scene, &["exit 7", "exec sleep 20"], "");
    let failing = failing.to_str().unwrap();
    let (status, report) =
        reported(scene.command(&attach_all(failing, &["--deadline", "3", "--json"]))).await;
    assert_eq!((status, &report["code"]), (Some(1), &"script".into()), "{report}");
    assert_eq!((&report["timed_out"], there(&scene).await), (&Value::Bool(true), 0), "{report}");
}

/// What was not begun is told behind what failed, and with what is true of running it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_begun_is_told_last_and_what_to_do_is_true() {
    let scene = Scene::new().await;
    let three = file(&scene, &[GOOD, "exit 7", GOOD], "vif = [ 'bridge=x' ]");
    let three = three.to_str().unwrap();
    for (option, says) in [
        ("--at-once=1", "all that was added was removed again: run it again when"),
        ("--keep", "those that were added stay, and would be added again, or refused"),
    ] {
        let (status, text) = explained(scene.command(&attach_all(three, &[option]))).await;
        assert_eq!(status, Some(1), "{text}");
        three_parts(&text);
        assert!(text.contains(says), "no {says:?} in {text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors[0].contains("disk[1]") && errors.last().unwrap().contains("vif[0]"), "{text}");
        assert_eq!(errors.len(), if option == "--keep" { 2 } else { 3 }, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_with_its_line_and_leaves_no_half() {
    let scene = Scene::new().await;
    let file = file(&scene, &[GOOD, "exit 7"], "");
    let file = file.to_str().unwrap();
    let (code, text) = explained(scene.command(&attach_all(file, &[]))).await;
    assert_eq!((code, there(&scene).await), (Some(1), 0), "{text}");
    three_parts(&text);
    let tried = format!("error: {file}:4: disk[1]: cannot attach vbd xvdb to domain 1");
    assert!(text.contains(&tried) && text.contains("status 7"), "{text}");
    assert!(text.contains(&format!("{file}:3: disk[0]: removed again")), "{text}");
    let (code, report) = reported(scene.command(&attach_all(file, &["--json", "--keep"]))).await;
    assert_eq!((code, there(&scene).await), (Some(1), 1), "{report}");
    assert_eq!((&report["ok"], &report["code"]), (&Value::Bool(false), &"script".into()), "{report}");
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(2), "{report}");
    let places = ["3: disk[0]", "4: disk[1]"].map(|place| Value::from(format!("{file}:{place}")));
    assert_eq!((&report["devices"][0]["place"], &report["devices"][1]["place"]), (&places[0], &places[1]));
    assert_eq!(report["place"], places[1], "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_seen_before_is_refused_before_anything_is_written() {
    let scene = Scene::new().await;
    let good = file(&scene, &[GOOD, GOOD], "");
    let good = good.to_str().unwrap().to_owned();
    assert_eq!(explained(scene.command(&attach_all(&good, &[]))).await, (Some(0), String::new()));
    assert_eq!(there(&scene).await, 2);
    // The third is new, but the others are there.
    let more = file(&scene, &[GOOD, GOOD, GOOD], "");
    let (code, text) = explained(scene.command(&attach_all(more.to_str().unwrap(), &[]))).await;
    assert_eq!((code, there(&scene).await), (Some(1), 2), "{text}");
    three_parts(&text);
    for place in [":3: disk[0]: ", ":4: disk[1]: "] {
        assert!(text.contains(place), "{text}");
    }
    for (rest, option, status, says) in [
        ("vif = [ 'colour=red',\n'mac=1' ]", "", 2, ":7: vif[1]: "),
        ("vif = [", "", 2, "the line ends too early"),
        ("pci = [ '0000:03:00.0' ]", "", 1, ":6: pci[0]: "),
        ("pci = [ '0000:03:00.0' ]", "--skip-unsupported", 1, "disk[1]"),
    ] {
        let file = file(&scene, &[GOOD, GOOD], rest);
        let options: Vec<&str> = [option].into_iter().filter(|option| !option.is_empty()).collect();
        let (code, text) = explained(scene.command(&attach_all(file.to_str().unwrap(), &options))).await;
        assert_eq!(code, Some(status), "{text}");
        assert!(text.contains(says), "no {says:?} in {text}");
        three_parts(&text);
    }
    let (code, text) = explained(scene.command(&attach_all("/nonexistent", &[]))).await;
    assert!(code == Some(1) && text.contains("No such file"), "{text}");
}

/// What the store would refuse, or nobody could run, is seen when nothing has been written yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_or_run_is_refused_before_anything_is() {
    let scene = Scene::new().await;
    let long = format!("vif = [ 'vifname=a,ip={}' ]", "1".repeat(4090));
    for (rest, code) in [
        (long.as_str(), "invalid"),
        ("vif = [ 'script=/nonexistent/vif' ]", "script"),
        ("vif = [ 'script=/etc/passwd' ]", "script"),
    ] {
        let file = file(&scene, &[GOOD], rest);
        let file = file.to_str().unwrap();
        for dry_run in [&["--json"][..], &["--json", "-N"]] {
            let (status, report) = reported(scene.command(&attach_all(file, dry_run))).await;
            assert_eq!((status, &report["code"]), (Some(1), &code.into()), "{report}");
            assert_eq!(report["place"], format!("{file}:5: vif[0]"), "{report}");
        }
    }
    for words in [format!("ip={}", "1".repeat(4090)), "script=/nonexistent/vif".to_owned()] {
        let (status, text) =
            explained(scene.command(&["-v", "network-attach", "--no-xl-conf", "1", &words])).await;
        assert_eq!((status, there(&scene).await), (Some(1), 0), "{text}");
        assert!(!text.contains("write the device's nodes"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_nobody_reads_change_no_outcome() {
    let scene = Scene::new().await;
    let file = file(&scene, &[GOOD, GOOD], "");
    let mut attach = scene.command(&attach_all(file.to_str().unwrap(), &["--json", "-v"]));
    attach.stdout(stdio(broken())).stderr(stdio(broken()));
    assert_eq!((code(attach).await, there(&scene).await), (Some(0), 2));
    let mut list = scene.command(&["list", "1"]);
    list.stdout(stdio(broken()));
    assert_eq!(explained(list).await, (Some(0), String::new()));
    let (status, text) = explained(scene.command(&["list", "1", "4242"])).await;
    assert_eq!(status, Some(1), "{text}");
    three_parts(&text);
}

/// A channel has two numbers in the store; whichever way it is listed, it is told by the one that detaches it.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_detached_by_what_lists_say() {
    let scene = Scene::new().await;
    for name in ["a", "b", "c"] {
        let attach =
            ["--json", "channel-attach", "--wait", "tree", "1", &format!("name={name},connection=pty")];
        let (status, report) = reported(scene.command(&attach)).await;
        let device = &report["device"];
        let number: u64 = device["name"].as_str().unwrap().parse().unwrap();
        assert_eq!((status, Some(number + 1)), (Some(0), device["devid"].as_u64()), "{report}");
    }
    // By the number in a listing of all kinds.
    let listed = reported(scene.command(&["list", "--json", "1"])).await.1;
    let of = |name: &str| {
        let devices = listed.as_array().unwrap();
        let device = devices.iter().find(|device| device["channel_name"] == name).unwrap();
        device["name"].as_str().unwrap().to_owned()
    };
    let detach = async |which: &str| {
        assert_eq!(explained(scene.command(&["channel-detach", "1", which])).await, (Some(0), String::new()));
        let left = reported(scene.command(&["channel-list", "--json", "1"])).await.1;
        let names = left.as_array().unwrap().iter().map(|device| device["channel_name"].as_str().unwrap());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(detach(&of("b")).await, ["a", "c"]);
    assert_eq!(detach("c").await, ["a"]);
    // One whose name is the number of another.
    let attach = ["channel-attach", "--wait", "tree", "1", "name=0,connection=pty"];
    assert_eq!(explained(scene.command(&attach)).await, (Some(0), String::new()));
    let (status, report) = reported(scene.command(&["--json", "channel-detach", "1", "0"])).await;
    assert_eq!((status, &report["code"]), (Some(1), &"ambiguous_name".into()), "{report}");
    assert_eq!(detach("1").await, ["a"]);
    assert_eq!(detach("0").await, [""; 0]);
}
