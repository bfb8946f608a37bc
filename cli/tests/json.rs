//! With `--json`, standard output holds exactly one JSON value whatever the outcome, and it follows the
//! published schema.

mod schema;

use std::process::Command;

use serde_json::Value;
use snapbox::{assert_data_eq, file};

/// Runs `xendev --json` on an embedded store: its exit status, and the one value that it printed.
fn run(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_xendev")).arg("--json").args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = schema::checked(&text, &format!("{arguments:?}"));
    assert!(text.ends_with('\n'), "{text:?}");
    (output.status.code().unwrap(), value)
}

fn on_embedded<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--store", "embedded"], arguments].concat()
}

/// The value with what varies masked, as it is compared with the files of `tests/json`.
fn masked(mut value: Value) -> String {
    if let Some(seconds) = value.get_mut("seconds") {
        *seconds = 0.into();
    }
    format!("{value:#}\n")
}

#[test]
fn outcomes() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["block-attach", "guest", "/etc/passwd,raw"], 2, "bad_device"),
        (&["block-attach", "guest", "/etc/passwd,raw,xvd"], 2, "bad_device"),
        (&["block-attach", "nobody", "/etc/passwd,raw,xvda"], 1, "no_such_domain"),
        (&["block-attach", "77", "/etc/passwd,raw,xvda"], 1, "no_such_domain"),
        (&["block-attach", "guest", "/nonexistent,raw,xvda"], 1, "target"),
        (&["block-attach", "guest", "/etc/passwd,raw,xvda,colo"], 1, "unsupported"),
        (&["network-attach", "guest", "--xl-conf", "/"], 1, "bad_xl_conf"),
        (&["network-attach", "guest", "--xl-conf", "/nonexistent"], 1, "bad_xl_conf"),
        (&["block-detach", "guest", "xvda"], 1, "no_such_device"),
        (&["block-detach", "guest", "nonsense"], 2, "bad_device"),
        (&["block-detach", "77", "xvda"], 1, "no_such_domain"),
        (&["network-attach", "guest", "colour=red"], 2, "bad_device"),
        (&["network-attach", "guest", "type=ioemu"], 1, "invalid"),
        (&["channel-attach", "guest", "name=x"], 2, "bad_device"),
        (&["channel-attach", "guest", "name=x,connection=pty"], 1, "no_device_model"),
        (&["channel-attach", "0", "name=x,connection=pty", "--wait", "tree"], 1, "not_in_domain0"),
        (&["channel-detach", "guest", "org.x"], 1, "no_such_device"),
        (&["vkb-attach", "0", "backend-type=linux"], 1, "not_in_domain0"),
        (&["virtio-attach", "guest", "type=foo", "irq=1", "base=1"], 2, "bad_device"),
        (&["channel-detach", "guest", "0"], 1, "no_such_device"),
        (&["usbctrl-attach", "guest", "type=foo"], 2, "bad_device"),
        (&["usbctrl-attach", "guest", "version=3"], 1, "invalid"),
        (&["usbctrl-attach", "guest", "type=devicemodel"], 1, "not_supported"),
        (&["usbctrl-attach", "guest", "type=qusb"], 1, "no_device_model"),
        (&["usbctrl-detach", "guest", "0"], 1, "no_such_device"),
        (&["pci-attach", "guest", "3"], 2, "bad_device"),
        (&["pci-attach", "guest", "3:0.0,colour=red"], 2, "bad_device"),
        (&["pci-attach", "guest", "3:0.0"], 1, "not_supported"),
        (&["pci-attach", "nobody", "3:0.0"], 1, "no_such_domain"),
        (&["pci-detach", "guest", "3:0.0"], 1, "no_such_device"),
        (&["pci-detach", "-f", "guest", "x"], 2, "bad_device"),
        (&["usbdev-attach", "guest", "hostbus=1"], 2, "bad_device"),
        (&["usbdev-attach", "guest", "hostbus=1,hostaddr=3,port=1"], 2, "bad_device"),
        (&["usbdev-attach", "guest", "hostbus=255", "hostaddr=255"], 1, "no_host_device"),
        (&["usbdev-attach", "nobody", "hostbus=255", "hostaddr=255"], 1, "no_such_domain"),
        (&["-N", "usbdev-attach", "guest", "hostbus=255", "hostaddr=255"], 1, "no_host_device"),
        (&["-N", "pci-attach", "guest", "3:0.0"], 1, "not_supported"),
        (&["-N", "usbdev-detach", "guest", "0", "1"], 2, "usage"),
        (&["usbdev-detach", "guest", "0", "1"], 1, "no_such_device"),
        (&["usbdev-detach", "guest", "0"], 2, "usage"),
        (&["p9-attach", "guest", "tag=t"], 2, "bad_device"),
        (&["p9-attach", "guest", "tag=t,path=/"], 1, "no_device_model"),
        (&["p9-attach", "guest", "tag=t,path=/,backend=dd"], 1, "no_backend_domain"),
        (&["p9-attach", "guest", "type=xen_9pfsd,path=/nonexistent"], 1, "target"),
        (&["p9-detach", "guest", "share"], 2, "bad_device"),
        (&["p9-detach", "guest", "7"], 1, "no_such_device"),
        (&["network-detach", "guest", "7"], 1, "no_such_device"),
        (&["network-detach", "guest", "eth0"], 2, "bad_device"),
        (&["network-detach", "guest", "00:16:3e:01:02:03"], 1, "no_such_device"),
        (&["block-list", "nobody"], 1, "no_such_domain"),
        (&["wait", "/local/domain/1/device/vbd/51712", "4", "--timeout", "0"], 3, "timed_out"),
        (&["wait", "no path", "4"], 2, "usage"),
        (&["wait", "/local", "nonsense"], 2, "usage"),
        (&["-N", "block-detach", "guest", "xvda"], 2, "usage"),
        (&["-N", "block-attach", "guest", "/etc/passwd,qcow2,xvda"], 1, "no_device_model"),
        (&["vkb-attach", "guest"], 2, "bad_device"),
        (&["vdispl-attach", "guest", "connectors=a"], 2, "bad_device"),
        (&["vtpm-attach", "guest", "backend=tpms"], 1, "no_backend_domain"),
        (&["vkb-attach", "guest", "backend-type=qemu"], 1, "no_device_model"),
        (&["vtpm-detach", "guest", "11111111-2222-3333-4444-555555555555"], 1, "no_such_device"),
        (&["vtpm-detach", "guest", "nonsense"], 2, "bad_device"),
        (&["vsnd-detach", "guest", "0"], 1, "no_such_device"),
        (&["pvcalls-list", "nobody"], 1, "no_such_domain"),
        (&["-N", "virtio-detach", "guest", "0"], 2, "usage"),
        (&["cd-insert", "nobody", "hdc", "/etc/passwd"], 1, "no_such_domain"),
        (&["cd-insert", "guest", "hdc", "/etc/passwd"], 1, "no_such_device"),
        (&["cd-insert", "guest", "hdc"], 2, "usage"),
        (&["cd-insert", "guest", "nonsense", "/etc/passwd"], 2, "bad_device"),
        (&["cd-eject", "guest", "hdc"], 1, "no_such_device"),
        (&["-N", "cd-eject", "guest", "hdc"], 1, "no_such_device"),
        (&["destroy-devices", "nobody"], 1, "no_such_domain"),
        (&["destroy-devices", "0"], 2, "usage"),
        (&["hotplug", "run", "guest", "vbd", "xvda", "add"], 1, "no_such_device"),
        (&["hotplug", "run", "1", "vbd", "xvd", "remove"], 2, "bad_device"),
        (&["hotplug", "run", "1", "vkb", "0", "add"], 2, "usage"),
        (&["hotplug", "run", "/local/domain/0/backend/vif/1/0", "offline"], 1, "no_such_device"),
        (&["attach-all", "guest", "/nonexistent"], 1, "bad_xl_cfg"),
        (&["attach-all", "guest", "/etc/passwd"], 2, "bad_xl_cfg"),
        (&["attach-all", "guest", "/"], 1, "bad_xl_cfg"),
        (&["attach-all", "guest", "tests/json/bad.cfg"], 2, "bad_device"),
        (&["attach-all", "guest", "tests/json/unsupported.cfg"], 1, "unsupported"),
        (&["attach-all", "guest", "tests/json/pci.cfg"], 1, "not_supported"),
        (&["attach-all", "guest", "tests/json/missing.cfg"], 1, "target"),
        (&["attach-all", "nobody", "tests/json/good.cfg"], 1, "no_such_domain"),
        (&["list", "nobody"], 1, "no_such_domain"),
        (&["demo"], 2, "usage"),
        (&["bogus"], 2, "usage"),
        (&["block-attach"], 2, "usage"),
        (&["--store", "/nonexistent/socket", "block-list", "1"], 1, "store"),
        (&["store", "--socket", "/nonexistent/folder/socket"], 1, "serve"),
    ];
    let mut codes = String::new();
    for (arguments, exit, code) in cases {
        let arguments = if arguments[0] == "--store" { arguments.to_vec() } else { on_embedded(arguments) };
        let (status, value) = run(&arguments);
        assert_eq!((status, value["code"].as_str()), (*exit, Some(*code)), "{arguments:?}: {value}");
        assert_eq!(value["ok"], Value::Bool(false));
        codes +=
            &format!("{}: {} | {} | {}\n", value["code"], value["error"], value["observed"], value["hint"]);
    }
    assert_data_eq!(codes, file!["json/problems.txt"]);
}

#[test]
fn attached() {
    let (status, value) = run(&on_embedded(&["block-attach", "guest", "/etc/passwd,raw,xvda,w"]));
    assert_eq!(status, 0);
    assert_data_eq!(masked(value), file!["json/attached.json"]);
}

#[test]
fn failed() {
    let (status, value) = run(&on_embedded(&["block-attach", "guest", "/etc/passwd,raw,xvda,colo"]));
    assert_eq!(status, 1);
    assert_data_eq!(masked(value), file!["json/failed.json"]);
}

#[test]
fn a_dry_run() {
    let disk = on_embedded(&["-N", "block-attach", "guest", "/etc/passwd,raw,xvda,w"]);
    assert_data_eq!(masked(run(&disk).1), file!["json/dry-run-disk.json"]);
    let nic = ["mac=00:16:3e:01:02:03,gatewaydev=eth0"];
    let nic = [&["-N", "network-attach", "guest", "--no-xl-conf"], &nic[..]].concat();
    assert_data_eq!(masked(run(&on_embedded(&nic)).1), file!["json/dry-run-vif.json"]);
}

/// Each kind can be attached, and its dry run follows the schema; what the guest's directory holds of a display is told.
#[test]
fn the_other_kinds() {
    let cases: [&[&str]; 6] = [
        &["vtpm-attach", "guest", "uuid=11111111-2222-3333-4444-555555555555"],
        &["vkb-attach", "guest", "backend-type=linux"],
        &["vdispl-attach", "guest", "connectors=id0:800x600;id1:1024x768"],
        &["vsnd-attach", "guest", "card, short-name=Main", "pcm, name=a", "stream, unique-id=0, type=p"],
        &["pvcalls-attach", "guest"],
        &["virtio-attach", "guest", "type=virtio,device22", "irq=33", "base=0x2000000"],
    ];
    for arguments in cases {
        let (status, value) = run(&on_embedded(arguments));
        assert_eq!((status, &value["ok"]), (0, &Value::Bool(true)), "{arguments:?}: {value}");
        let (status, value) = run(&on_embedded(&[&["-N"], arguments].concat()));
        let name = arguments[0].trim_end_matches("-attach");
        assert!(status == 0 && value[name].is_object(), "{arguments:?}: {value}");
    }
    assert_data_eq!(
        masked(run(&on_embedded(&[&["-N"], cases[2]].concat())).1),
        file!["json/dry-run-vdispl.json"]
    );
}

#[test]
fn destroyed() {
    let (status, value) = run(&on_embedded(&["destroy-devices", "guest"]));
    assert_eq!((status, &value["ok"]), (0, &Value::Bool(true)));
    assert_eq!(value["model"]["outcome"], "not_there");
    let (status, value) = run(&on_embedded(&["-N", "destroy-devices", "guest"]));
    assert_eq!((status, &value["dry_run"]), (0, &Value::Bool(true)));
}

#[test]
fn sets() {
    let file = ["attach-all", "guest", "tests/json/good.cfg", "--no-xl-conf"];
    let (status, value) = run(&on_embedded(&file));
    assert_eq!((status, &value["ok"]), (0, &Value::Bool(true)));
    let outcomes = value["devices"].as_array().unwrap().iter().map(|device| &device["outcome"]);
    assert_eq!(outcomes.collect::<Vec<_>>(), ["done"; 3]);
    let (status, value) = run(&on_embedded(&[&file[..], &["-N"]].concat()));
    assert_eq!((status, &value["dry_run"]), (0, &Value::Bool(true)));
    let devids = value["devices"].as_array().unwrap().iter().map(|device| &device["device"]["devid"]);
    assert_eq!(devids.collect::<Vec<_>>(), [51712, 0, 1]);
    assert_eq!(run(&on_embedded(&["list", "guest"])), (0, Value::Array(Vec::new())));
}

/// Where each of them stands is told, and not in words alone.
#[test]
fn what_a_file_says_wrong_has_its_place() {
    let bad = ["tests/json/bad.cfg:1: disk[1]", "tests/json/bad.cfg:3: vif[0]"];
    for (file, places) in [
        ("tests/json/bad.cfg", &bad[..]),
        ("tests/json/unsupported.cfg", &["tests/json/unsupported.cfg:2: dtdev"]),
        ("tests/json/pci.cfg", &["tests/json/pci.cfg:2: pci[0]"]),
        ("tests/json/missing.cfg", &["tests/json/missing.cfg:2: disk[1]"]),
    ] {
        let (_, value) = run(&on_embedded(&["attach-all", "guest", file]));
        let refused = value["refused"].as_array().unwrap().iter().map(|refused| &refused["place"]);
        assert_eq!(refused.collect::<Vec<_>>(), places, "{value}");
        assert_eq!(value["place"], places[0], "{value}");
    }
    assert_eq!(run(&on_embedded(&["attach-all", "guest", "/etc/passwd"])).1["place"], "/etc/passwd:1");
}

#[test]
fn the_machines() {
    let (status, value) = run(&["machine"]);
    let names: Vec<&str> = value["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|machine| machine["machine"].as_str().unwrap())
        .collect();
    assert_eq!((status, &names[..]), (0, &["add", "remove"][..]));
    let settling =
        &value["machines"][0]["states"].as_array().unwrap().iter().find(|state| state["name"] == "Settling");
    assert_eq!(settling.unwrap()["phase"], "at_work");
    assert_eq!(run(&["machine", "remove"]).1["machines"], Value::Array(vec![value["machines"][1].clone()]));
}

#[test]
fn a_listing_has_a_value_for_each_guest() {
    let (status, value) = run(&on_embedded(&["block-list", "guest", "nobody"]));
    assert_eq!((status, value.as_array().unwrap().len()), (1, 1));
    assert_eq!(run(&on_embedded(&["network-list", "guest"])), (0, Value::Array(Vec::new())));
    assert_eq!(run(&on_embedded(&["usb-list", "guest"])), (0, Value::Array(Vec::new())));
    assert_eq!(run(&on_embedded(&["pci-list", "guest"])), (0, Value::Array(Vec::new())));
}
