//! D5: `xl.conf` has the defaults of interfaces, as for `xl`.

use std::fs;
use std::process::Command;

/// Runs a dry run on an embedded store with this `xl.conf`: exit status, standard output, standard error.
fn dry_run(conf: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("xl.conf");
    fs::write(&file, conf).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
    command.args(["--store", "embedded", "-N", "network-attach", "guest", "--xl-conf"]).arg(&file);
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_not_said_comes_from_there() {
    let conf =
        "vif.default.bridge=\"br9\"\nvif.default.script='vif-route'\nvif.default.gatewaydev=\"eth9\"\n";
    let vif = "vif: {\n    \"bridge\": \"br9\",\n    \"script\": \"vif-route\",\n    \"gatewaydev\": \"eth9\"\n}\n\n";
    assert_eq!(dry_run(conf, &[]), (0, vif.to_owned(), String::new()));
    let vif = "vif: {\n    \"bridge\": \"\",\n    \"script\": \"x\",\n    \"gatewaydev\": \"eth9\"\n}\n\n";
    assert_eq!(dry_run(conf, &["bridge=,script=x"]), (0, vif.to_owned(), String::new()));
}

#[test]
fn what_has_no_effect_is_told_and_what_is_wrong_is_refused() {
    let (code, _, stderr) = dry_run("run_hotplug_scripts=0\n", &[]);
    assert!(code == 0 && stderr.starts_with("warning: xl.conf says run_hotplug_scripts=0"), "{stderr}");
    let (code, stdout, stderr) = dry_run("vif.default.bridge=br9\n", &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.contains("line 1: this cannot stand here: \"br9\"") && stderr.contains("--no-xl-conf"),
        "{stderr}"
    );
}

/// One that was named has to be there.
#[test]
fn a_name_that_is_misspelled_is_told() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xendev"));
    command.args(["--store", "embedded", "-N", "network-attach", "guest", "--xl-conf", "/nonexistent"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("No such file"), "{stderr}");
}
