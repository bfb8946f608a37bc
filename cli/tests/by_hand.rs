//! `hotplug run`: the script of a device is run by hand as its attach and its detach would run it, on Debian's daemon.

mod host;
mod schema;

use std::fs;

use host::{GUEST, Host};
use lab::daemon::DaemonKind;
use serde_json::Value;
use tokio::process::Command;
use xs_client::Path;

const BACKEND: &str = "/local/domain/0/backend/vbd/1/51712";

/// A host whose guest has a disk that its backend has taken up and the guest has not; and its script, which notes
/// what it was given.
async fn with_disk() -> (Host, String) {
    let mut host = Host::start(DaemonKind::Xenstored).await;
    host.frontends = None;
    let log = host.image().with_file_name("log");
    let body = format!(
        r#"echo "$1 of $XENBUS_PATH: $(xenstore-read "$XENBUS_PATH/node" 2>&1), $(ps -o pgid= $$ | tr -d ' ') $$" >> {}
echo "said by $1"
case "$1" in
add) xenstore-write "$XENBUS_PATH/node" /dev/made "$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected;;
esac"#,
        log.display()
    );
    let script = host.script("noting", &body);
    host.xendev(&["block-attach", "guest", &host.disk(&script)]).await.quietly();
    (host, script)
}

fn log(host: &Host) -> Vec<String> {
    let text = fs::read_to_string(host.image().with_file_name("log")).unwrap();
    text.lines().map(|line| line.rsplit_once(", ").unwrap().0.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_by_hand_undoes_and_an_add_makes_anew() {
    let (host, script) = with_disk().await;
    let before = host.dump().await;

    // It has been run already.
    let add = ["hotplug", "run", "guest", "vbd", "xvda", "add"];
    let again = host.xendev(&add).await;
    again.failed(
        1,
        &["it has been run already (node is /dev/made)", "hotplug run 1 vbd xvda remove", "--force"],
    );
    assert_eq!(host.dump().await, before);

    let removed = host.xendev(&["hotplug", "run", BACKEND, "remove"]).await;
    assert_eq!((removed.code, removed.stderr.as_str()), (Some(0), ""));
    for said in [
        &*format!("{script} remove: exited with status 0 after "),
        "  | said by remove\n",
        "hotplug-status: not there\n",
        "  node: /dev/made -> (not there)\n",
        "  physical-device: 7:0 -> (not there)\n",
    ] {
        assert!(removed.stdout.contains(said), "no {said:?} in {}", removed.stdout);
    }
    assert!(!host.dump().await.contains("/dev/made"), "neither the backend nor the copy tells of it");

    let added = host.xendev(&[&["--json"], &add[..]].concat()).await;
    let value = schema::checked(&added.stdout, "hotplug run");
    assert_eq!((added.code, &value["ok"]), (Some(0), &Value::Bool(true)), "{value}");
    assert_eq!(value["changed"]["node"], serde_json::json!([null, "/dev/made"]));
    assert_eq!(value["runs"][0]["report"]["output"], "said by add\n");
    let sorted = |dump: &str| dump.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&host.dump().await), sorted(&before), "as it was before both");
    let relative = BACKEND.trim_start_matches("/local/domain/0/");
    assert_eq!(log(&host)[1..], [format!("remove of {relative}: /dev/made"), log(&host)[2].clone()]);

    host.xendev(&["block-detach", "--force", "1", "xvda"]).await.quietly();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_uses_is_left_unless_it_is_forced() {
    let (mut host, _) = with_disk().await;
    host.start_guest().await;
    assert_eq!(host.xendev(&["wait", BACKEND, "4"]).await.code, Some(0));
    let remove = ["hotplug", "run", "1", "vbd", "51712", "remove"];
    host.xendev(&remove)
        .await
        .failed(1, &["its backend's state is 4 (Connected)", "block-detach 1 xvda", "--force"]);
    host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "add"]).await.failed(1, &["would be set up twice"]);
    assert_eq!(log(&host).len(), 1);
    assert_eq!(host.xendev(&[&remove[..], &["--force"]].concat()).await.code, Some(0));
    assert_eq!(log(&host).len(), 2);
    host.xendev(&["block-detach", "--force", "1", "xvda"]).await.quietly();
}

/// The backend's directory is gone, and even the toolstack's: the copy tells what there is to undo.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_backend_the_saved_copy_is_what_the_script_finds() {
    let (host, script) = with_disk().await;
    let rm = async |path: &str| host.client.rm(&Path::new(path).unwrap()).await.unwrap();
    rm(BACKEND).await;
    let dry = host.xendev(&["-N", "hotplug", "run", "1", "vbd", "xvda", "remove"]).await;
    assert!(
        dry.stdout.contains("xenstore-write /tool/xendev/backend/vbd/1/51712/node /dev/made\n"),
        "{}",
        dry.stdout
    );
    assert_eq!(log(&host).len(), 1, "nothing was run");
    let removed = host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "remove"]).await;
    assert_eq!((removed.code, removed.stderr.as_str()), (Some(0), ""));
    assert!(removed.stdout.contains("in a copy of the backend's keys: /tool/xendev/"), "{}", removed.stdout);
    assert_eq!(log(&host)[1], "remove of /tool/xendev/backend/vbd/1/51712: /dev/made");
    let dump = host.dump().await;
    assert!(!dump.contains(BACKEND) || !dump.contains("/dev/made"), "{dump}");
    let again = host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "remove"]).await;
    assert!(again.stdout.starts_with("nothing was run"), "{}", again.stdout);
    let none = host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "add"]).await;
    none.failed(1, &["the guest has no such device"]);
    assert!(removed.stdout.starts_with(&script));
}

/// What a dry run prints does the same when a shell is given it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_can_be_pasted() {
    let (host, _) = with_disk().await;
    let before = host.dump().await;
    let dry = ["hotplug", "run", "1", "vbd", "xvda", "remove", "--dry-run"];
    let value = schema::checked(&host.xendev(&[&dry[..], &["--json"]].concat()).await.stdout, "hotplug run");
    assert_eq!((&value["runs"][0]["native"], &value["refused"]), (&Value::Bool(false), &Value::Null));
    let dry = host.xendev(&dry).await;
    assert_eq!((dry.code, host.dump().await), (Some(0), before));
    assert!(dry.stdout.contains("#   node = /dev/made\n"), "{}", dry.stdout);
    let ran = Command::new("sh").arg("-c").arg(&dry.stdout).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "said by remove\n", "{ran:?}");
    assert_eq!(log(&host)[1], "remove of backend/vbd/1/51712: /dev/made");
}

/// An attach that died has its record put back, so that a detach goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_died_stays_on_record() {
    let (host, _) = with_disk().await;
    let record = Path::new(format!("/libxl/{GUEST}/device/vbd/51712/op")).unwrap();
    host.client.write(&record, "remove:1 stage=left since=1").await.unwrap();
    assert_eq!(host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "remove"]).await.code, Some(0));
    assert_eq!(&*host.client.read(&record).await.unwrap(), b"remove:1 stage=left since=1");
    let alive = format!("add:2 stage=script since=1 domid={GUEST} pid=1 start=1 boot=x ns=1");
    host.client.write(&record, alive).await.unwrap();
    host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "add"]).await.failed(1, &["works on the device\n"]);
    assert_eq!(log(&host).len(), 2);
}

/// What a script that fails says, and what it changed, is told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_is_told_with_what_it_changed() {
    let (host, script) = with_disk().await;
    let body = r#"xenstore-write "$XENBUS_PATH/half" done; echo "no such LUN"; exit 3"#;
    fs::write(script, format!("#!/bin/sh\n{body}\n")).unwrap();
    let remove = ["hotplug", "run", "1", "vbd", "xvda", "remove"];
    let failed = host.xendev(&remove).await;
    failed.failed(
        1,
        &["cannot run the hotplug script of vbd xvda of domain 1", "exited with status 3: no such LUN"],
    );
    assert!(failed.stdout.contains("  half: (not there) -> done\n"), "{}", failed.stdout);
    let value =
        schema::checked(&host.xendev(&[&remove[..], &["--json"]].concat()).await.stdout, "hotplug run");
    assert_eq!(
        (&value["code"], &value["run"]["runs"][0]["report"]["ending"]["exited"]),
        (&"script".into(), &3.into())
    );
}

/// A script that fails without a word, or is killed, is spoken for; what it says itself stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_is_told_of_a_script_that_says_nothing() {
    let (host, script) = with_disk().await;
    assert_eq!(host.xendev(&["hotplug", "run", "1", "vbd", "xvda", "remove"]).await.code, Some(0));
    let add = ["hotplug", "run", "1", "vbd", "xvda", "add", "--script-timeout", "1"];
    let own =
        r#"xenstore-write "$XENBUS_PATH/hotplug-error" "no LUN" "$XENBUS_PATH/hotplug-status" busy; exit 1"#;
    for (body, code, error, status) in [
        ("echo out of memory; exit 7", 1, "exited with status 7: out of memory", "error"),
        ("sleep 100", 3, "did not finish within 1 s and was killed with its process group", "error"),
        (own, 1, "no LUN", "busy"),
    ] {
        fs::write(&script, format!("#!/bin/sh\n{body}\n")).unwrap();
        let failed = host.xendev(&add).await;
        assert_eq!(failed.code, Some(code), "{}", failed.stderr);
        let read = async |key: &str| {
            let value = host.client.read(&Path::new(format!("{BACKEND}/{key}")).unwrap()).await.unwrap();
            String::from_utf8(value.to_vec()).unwrap()
        };
        assert_eq!((&*read("hotplug-error").await, &*read("hotplug-status").await), (error, status));
    }
    // Without its directory it is not brought back.
    let gone = format!("xenstore-rm {BACKEND}; exit 1");
    fs::write(&script, format!("#!/bin/sh\n{gone}\n")).unwrap();
    assert_eq!(host.xendev(&add).await.code, Some(1));
    assert!(!host.dump().await.contains(&format!("{BACKEND}/")), "{}", host.dump().await);
}

/// An interface: both of its words do, and what netback waits for goes back to what the attach wrote.
#[tokio::test(flavor = "multi_thread")]
async fn an_interface_goes_offline_and_online() {
    let mut host = Host::start(DaemonKind::Xenstored).await;
    host.frontends = None;
    let script = host.good_script();
    host.xendev(&["network-attach", "1", &format!("script={script}"), "mac=00:16:3e:11:22:33"])
        .await
        .quietly();
    let offline = host.xendev(&["hotplug", "run", "1", "vif", "00:16:3e:11:22:33", "offline"]).await;
    assert!(offline.stdout.contains("hotplug-status: connected -> \n"), "{}", offline.stdout);
    let online = host.xendev(&["hotplug", "run", "1", "vif", "0", "online"]).await;
    assert!(online.stdout.contains("good online type_if=vif: exited with status 0"), "{}", online.stdout);
    assert!(online.stdout.contains("hotplug-status:  -> connected\n"), "{}", online.stdout);
}
