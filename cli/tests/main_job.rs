//! The main job against Debian's real daemons, by the commands that a user types.

mod host;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use host::{GUEST, Host};
use lab::daemon::DaemonKind;
use serde_json::Value;
use xs_client::Path;

const DAEMONS: [DaemonKind; 2] = [DaemonKind::Xenstored, DaemonKind::Oxenstored];

#[tokio::test(flavor = "multi_thread")]
async fn attach_list_and_detach() {
    for kind in DAEMONS {
        let host = Host::start(kind).await;
        let before = host.dump().await;
        let script = host.good_script();
        let nic = format!("script={script}");

        host.xendev(&["block-attach", "guest", &host.disk(&script), "--wait", "connected"]).await.quietly();
        let mac = "mac=00:16:3e:11:22:33";
        host.xendev(&["network-attach", "1", &nic, mac, "--wait", "connected"]).await.quietly();
        for path in ["/local/domain/1/device/vbd/51712", "/local/domain/1/device/vif/0"] {
            let waited = host.xendev(&["wait", path, "connected"]).await;
            assert_eq!((waited.code, waited.stdout.as_str()), (Some(0), "4 (Connected)\n"));
        }

        let disks = host.xendev(&["block-list", "1"]).await;
        let row = "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n";
        assert!(disks.stdout.starts_with("Vdev  BE  handle state evt-ch ring-ref BE-path "));
        assert!(disks.stdout.ends_with(row), "{}", disks.stdout);
        let nics = host.xendev(&["network-list", "--json", "guest"]).await;
        let nics: Value = serde_json::from_str(&nics.stdout).unwrap();
        assert_eq!(nics[0]["mac"], "00:16:3e:11:22:33");
        assert_eq!((&nics[0]["backend_state"], &nics[0]["operation"]), (&Value::from(4), &Value::Null));

        host.xendev(&["block-detach", "1", "xvda"]).await.quietly();
        host.xendev(&["network-detach", "1", "00:16:3e:11:22:33"]).await.quietly();
        assert_eq!(host.dump().await, before, "{kind:?}");
    }
}

/// D8: a name whose only home is a dead domain's is nobody's, and what that domain has left is listed and
/// removed by its number.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_is_gone_is_cleaned_up_by_its_number() {
    for kind in DAEMONS {
        let host = Host::start(kind).await;
        let before = host.dump().await;
        let (backend, frontend) =
            ("/local/domain/0/backend/vbd/77/51712", "/local/domain/77/device/vbd/51712");
        for (node, value) in [
            ("/local/domain/77/name".to_owned(), "ghost"),
            (format!("{frontend}/backend"), backend),
            ("/libxl/77/device/vbd/51712/backend".to_owned(), backend),
            ("/libxl/77/device/vbd/51712/frontend".to_owned(), frontend),
            (format!("{backend}/frontend"), frontend),
            (format!("{backend}/state"), "6"),
        ] {
            host.client.write(&Path::new(node).unwrap(), value.to_owned()).await.unwrap();
        }
        let gone = ["domain 77 does not run", "detached by its domid"];
        let disk = host.disk(&host.good_script());
        for command in
            [&["block-attach", "ghost", &disk][..], &["block-attach", "77", &disk], &["block-list", "ghost"]]
        {
            host.xendev(command).await.failed(1, &gone);
        }
        let listed = host.xendev(&["block-list", "77"]).await;
        assert!(listed.code == Some(0) && listed.stdout.contains(backend), "{}", listed.stdout);
        assert_eq!(host.xendev(&["block-detach", "77", "xvda"]).await.code, Some(0));
        host.xendev(&["block-list", "77"]).await.failed(1, &gone);
        host.client.rm(&Path::new("/local/domain/77").unwrap()).await.unwrap();
        host.client.rm(&Path::new("/libxl/77").unwrap()).await.ok();
        assert_eq!(host.dump().await, before, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_has_three_parts_and_leaves_the_store_as_it_was() {
    let mut host = Host::start(DaemonKind::Xenstored).await;
    let before = host.dump().await;
    let good = host.disk(&host.good_script());

    let failing = host.script(
        "failing",
        r#"[ $1 = add ] || exit 0
xenstore-write "$XENBUS_PATH/hotplug-error" "the array is degraded"; exit 1"#,
    );
    let ran = host.xendev(&["block-attach", "1", &host.disk(&failing)]).await;
    ran.failed(1, &["exited with status 1: the array is degraded"]);
    assert_eq!(host.dump().await, before);

    let hanging = host.script("hanging", "[ $1 = add ] || exit 0\nsleep 987 & sleep 987");
    let ran = host.xendev(&["block-attach", "1", &host.disk(&hanging), "--script-timeout", "0.5"]).await;
    ran.failed(3, &["did not finish", "--script-timeout"]);
    assert_eq!(host.dump().await, before);

    let ran = host.xendev(&["block-attach", "1", &host.disk("/no/such/script")]).await;
    ran.failed(1, &["/no/such/script", "no such file"]);
    assert_eq!(host.dump().await, before);

    host.xendev(&["block-attach", "4242", &good]).await.failed(1, &["4242", "xl list"]);
    host.xendev(&["block-attach", "1", "/nowhere,raw,xvda,w"]).await.failed(1, &["/nowhere"]);
    host.xendev(&["block-attach", "1", "/d,raw,xvd,w"]).await.failed(2, &["names no virtual disk"]);
    host.xendev(&["block-detach", "1", "xvda"]).await.failed(1, &["no such device"]);
    host.xendev(&["network-attach", "1", "mac=zz"]).await.failed(2, &["no MAC address"]);
    assert_eq!(host.dump().await, before);

    host.frontends = None;
    let ran =
        host.xendev(&["block-attach", "1", &good, "--wait", "connected", "--connect-timeout", "0.5"]).await;
    ran.failed(
        3,
        &["within 500ms", "backend state 2 (InitWait), frontend state 1 (Initialising)", "xen-blkfront"],
    );
    assert_eq!(host.dump().await, before);

    host.backends = None;
    let ran = host.xendev(&["block-attach", "1", &good, "--backend-timeout", "0.5"]).await;
    ran.failed(3, &["no backend driver has taken the device up", "modprobe xen-blkback"]);
    assert_eq!(host.dump().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_let_go() {
    let mut host = Host::start(DaemonKind::Xenstored).await;
    let before = host.dump().await;
    let disk = host.disk(&host.good_script());
    host.xendev(&["block-attach", "1", &disk, "--wait", "connected"]).await.quietly();
    host.frontends = None;

    let ran = host.xendev(&["block-detach", "1", "xvda", "--timeout", "0.5"]).await;
    ran.failed(3, &["left closing", "backend state 5 (Closing)"]);
    let listed: Value =
        serde_json::from_str(&host.xendev(&["block-list", "1", "--json"]).await.stdout).unwrap();
    assert!(listed[0]["operation"].as_str().unwrap().starts_with("remove:"), "{listed}");

    host.start_guest().await;
    host.xendev(&["block-detach", "1", "xvda"]).await.quietly();
    assert_eq!(host.dump().await, before);

    host.xendev(&["block-attach", "1", &disk, "--wait", "connected"]).await.quietly();
    host.frontends = None;
    host.xendev(&["block-detach", "--force", "1", "xvda"]).await.quietly();
    assert_eq!(host.dump().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_rolls_back() {
    let host = Host::start(DaemonKind::Xenstored).await;
    let before = host.dump().await;
    let hanging = host.script("hanging", "[ $1 = add ] || exit 0\nsleep 986");
    let disk = host.disk(&hanging);
    let child =
        host.command(&["block-attach", "1", &disk]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();

    // Once the backend is ready the script runs; interrupted then or a little earlier, it ends alike.
    let state = xs_client::Path::new(format!("/local/domain/0/backend/vbd/{GUEST}/51712/state")).unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let ready =
        xen_devstate::Goal { absent: xen_devstate::Absent::Ignore, ..xen_devstate::Goal::BACKEND_READY };
    xen_devstate::wait(&host.client, &state, ready, Duration::from_secs(20), &cancel).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();

    let ran = host::Ran::from(child.wait_with_output().await.unwrap());
    ran.failed(4, &["cancelled", "cancelling, and cleaning up"]);
    assert_eq!(host.dump().await, before);
}

/// A device whose script cannot be started any more when it is to be removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_is_lost_can_be_put_back() {
    let host = Host::start(DaemonKind::Xenstored).await;
    let before = host.dump().await;
    let script = host.good_script();
    let lose = || fs::remove_file(&script).unwrap();
    let lock = || fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    let ways: [(&dyn Fn(), &str); 2] =
        [(&lose, "hint: put /"), (&lock, "hint: make it executable (chmod +x /")];
    for (spoil, hint) in ways {
        host.xendev(&["block-attach", "1", &host.disk(&script), "--wait", "connected"]).await.quietly();
        spoil();
        let ran = host.xendev(&["block-detach", "1", "xvda"]).await;
        ran.failed(1, &[hint, "detach the device again, or detach it with --force"]);
        assert_eq!(host.good_script(), script);
        host.xendev(&["block-detach", "1", "xvda"]).await.quietly();
        assert_eq!(host.dump().await, before);
    }
}

/// A guest that `xl` made has a file by which `xl` reboots it.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_entered_into_libxls_configuration() {
    for kind in DAEMONS {
        let host = Host::start(kind).await;
        let uuid = "0a1b2c3d-0000-4000-8000-0123456789ab";
        let vm = Path::new("/local/domain/1/vm").unwrap();
        host.client.write(&vm, format!("/vm/{uuid}")).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("userdata-d.1.{uuid}.libxl-json"));
        let created = "{\n    \"c_info\": {\n        \"type\": \"pv\"\n    }\n}\n\0";
        fs::write(&file, created).unwrap();
        let libxl = ["--libxl-dir", folder.path().to_str().unwrap()];
        let text = || fs::read_to_string(&file).unwrap();

        let script = host.good_script();
        let (disk, nic) = (host.disk(&script), format!("script={script}"));
        let attach_disk = [&["block-attach", "1", &disk][..], &libxl].concat();
        host.xendev(&attach_disk).await.quietly();
        host.xendev(&[&["network-attach", "1", &nic][..], &libxl].concat()).await.quietly();
        assert!(
            text().contains("\"vdev\": \"xvda\"") && text().contains("\"nictype\": \"vif\""),
            "{}",
            text()
        );
        host.xendev(&[&["block-detach", "1", "51712"][..], &libxl].concat()).await.quietly();
        host.xendev(&[&["network-detach", "1", "0"][..], &libxl].concat()).await.quietly();
        assert_eq!(text(), created);

        fs::write(&file, "broken").unwrap();
        let says = ["cannot be changed: it is not a JSON object", "attach it with --no-record"];
        host.xendev(&attach_disk).await.failed(1, &says);
        let told = host.xendev(&[&attach_disk[..], &["--json"]].concat()).await.stdout;
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["ok"], &told["operation"]), (&Value::from(false), &Value::from("attach")));
        for (told, says) in [&told["observed"][0], &told["hint"]].into_iter().zip(says) {
            assert!(told.as_str().unwrap().contains(says), "{told}");
        }
        host.xendev(&[&attach_disk[..], &["--no-record"]].concat()).await.quietly();
        host.xendev(&[&["block-detach", "1", "xvda", "--no-record"][..], &libxl].concat()).await.quietly();
        assert_eq!(text(), "broken");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{kind:?}");
    }
}
