//! What is thought of what was observed, as far as it needs nothing but that.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::check::{Check, Finding, Verdict};
use super::scene::{Kind, Values};

/// What the contract demands an add to write.
pub(super) fn reports(kind: Kind, keys: &Values) -> Finding {
    let finding = Finding::ok(Check::Reports);
    let has = |key: &str| keys.get(key).is_some_and(|value| !value.is_empty());
    let connected = keys.get("hotplug-status").is_some_and(|status| status == "connected");
    if kind == Kind::Vif {
        let hint = "let add write hotplug-status=connected when the interface is ready: netback waits for it";
        return if connected {
            finding
        } else {
            finding.with(Verdict::Failed, "hotplug-status is not connected", hint)
        };
    }
    let finding = match (has("physical-device"), has("physical-device-path")) {
        (true, true) => finding,
        (true, false) => finding.with(
            Verdict::Warning,
            "physical-device-path was not written",
            "let add write the path of the block device too; FreeBSD needs it, and sharing is seen by it",
        ),
        (false, true) => finding.with(
            Verdict::Warning,
            "physical-device was not written, only physical-device-path",
            "let add write major:minor in hexadecimal: xendev writes it from the path, and xl does not",
        ),
        (false, false) => finding.with(
            Verdict::Failed,
            "neither physical-device nor physical-device-path was written",
            "let add write both before it exits: blkback waits for physical-device",
        ),
    };
    if connected {
        return finding;
    }
    let hint = "let add write hotplug-status=connected, as the stock scripts do";
    finding.with(Verdict::Warning, "hotplug-status is not connected", hint)
}

/// Whether what a script says of its block device is true.
pub(super) fn device(keys: &Values) -> Finding {
    let mut finding = Finding::ok(Check::Device);
    let path = keys.get("physical-device-path").filter(|path| !path.is_empty());
    let numbers = keys.get("physical-device").filter(|numbers| !numbers.is_empty());
    let found = path.and_then(|path| Some((path, fs::metadata(path).ok()?)));
    let is_block = found.as_ref().is_some_and(|(_, found)| found.file_type().is_block_device());
    if let Some(path) = path.filter(|_| !is_block) {
        let observed = format!("physical-device-path is {path}, which is no block device");
        finding.note(
            Verdict::Failed,
            observed,
            "let add write the path of the block device that is to be served",
        );
    }
    let Some(numbers) = numbers else { return finding };
    let format = "write physical-device as stat -L -c %t:%T prints it: major:minor in hexadecimal";
    let Some(said) = parse(numbers) else {
        let observed = format!("physical-device is {numbers:?}, which is not major:minor in hexadecimal");
        finding.note(Verdict::Failed, observed, format);
        return finding;
    };
    match found.filter(|_| is_block) {
        Some((path, found)) => {
            let is = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
            if said != is {
                let observed = format!("physical-device is {numbers}, and {path} is {:x}:{:x}", is.0, is.1);
                finding.note(Verdict::Failed, observed, format);
            }
        }
        None if !Path::new(&format!("/sys/dev/block/{}:{}", said.0, said.1)).exists() => {
            let observed = format!("physical-device is {numbers}, and there is no such block device");
            finding.note(Verdict::Failed, observed, format);
        }
        None => {}
    }
    finding
}

fn parse(numbers: &str) -> Option<(u32, u32)> {
    let hex = |text: &str| {
        let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten()
    };
    let (major, minor) = numbers.split_once(':')?;
    Some((hex(major)?, hex(minor)?))
}

/// What is said in place of the value of a node that is not there.
pub(super) const GONE: &str = "not there";

/// The paths that differ between two looks at a store, but for those below one of these.
pub(super) fn changed(before: &Values, after: &Values, but: &[&str]) -> Vec<String> {
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let is_below = |path: &str| {
        but.iter().any(|but| {
            let but = but.trim_start_matches('/');
            path == but || path.strip_prefix(but).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let differs = |path: &&&String| before.get(**path) != after.get(**path) && !is_below(path);
    paths
        .iter()
        .filter(differs)
        .map(|path| {
            let value =
                |values: &Values| values.get(*path).map_or(GONE.to_owned(), |value| format!("{value:?}"));
            xen_hotplug::printable(
                format!("/{path}: {} -> {}", value(before), value(after)),
                xen_hotplug::LINE_SHOWN,
            )
        })
        .collect()
}

/// Whether an add of a target that does not exist has failed as it should.
pub(super) fn bad_target(exited_with_0: bool, how: &str, keys: &Values) -> Finding {
    let finding = Finding::ok(Check::BadTarget);
    let status = keys.get("hotplug-status").map_or("", String::as_str);
    let mut faults = Vec::new();
    if exited_with_0 {
        faults.push("it exits with 0");
    }
    if status == "connected" {
        faults.push("it writes hotplug-status=connected");
    }
    if keys.get("physical-device").is_some_and(|numbers| !numbers.is_empty()) {
        faults.push("it writes physical-device");
    }
    if !faults.is_empty() {
        let observed = format!("of a target that does not exist {} ({how})", faults.join(", and "));
        let hint =
            "let add write hotplug-error and hotplug-status=error and exit with 1 if there is no such target";
        return finding.with(Verdict::Failed, observed, hint);
    }
    if matches!(status, "error" | "busy") && keys.get("hotplug-error").is_some_and(|error| !error.is_empty())
    {
        return finding;
    }
    let hint = "let add write hotplug-error, with the reason, and hotplug-status=error before it exits";
    finding.with(Verdict::Warning, format!("it fails, and does not say why in the store ({how})"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[(&str, &str)]) -> Values {
        keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_disk_must_report() {
        let verdict = |said: &[(&str, &str)]| reports(Kind::Vbd, &keys(said)).verdict;
        let (numbers, path, status) = (
            ("physical-device", "7:0"),
            ("physical-device-path", "/dev/loop0"),
            ("hotplug-status", "connected"),
        );
        assert_eq!(verdict(&[numbers, path, status]), Verdict::Ok);
        assert_eq!(verdict(&[numbers, status]), Verdict::Warning);
        assert_eq!(verdict(&[path, status]), Verdict::Warning);
        assert_eq!(verdict(&[numbers, path]), Verdict::Warning);
        assert_eq!(verdict(&[status]), Verdict::Failed);
        assert_eq!(verdict(&[("physical-device", ""), status]), Verdict::Failed);
        assert_eq!(reports(Kind::Vif, &keys(&[status])).verdict, Verdict::Ok);
        assert_eq!(reports(Kind::Vif, &keys(&[("hotplug-status", "")])).verdict, Verdict::Failed);
    }

    #[test]
    fn a_device_is_known_by_its_numbers() {
        let verdict = |said: &[(&str, &str)]| device(&keys(said)).verdict;
        assert_eq!(verdict(&[]), Verdict::Ok);
        for bad in ["7", "7:", "0x7:0", "7:0 ", "/dev/loop0", "fff:ffffe"] {
            assert_eq!(verdict(&[("physical-device", bad)]), Verdict::Failed, "{bad}");
        }
        assert_eq!(verdict(&[("physical-device-path", "/dev/null")]), Verdict::Failed);
    }

    #[test]
    fn only_what_is_below_the_backend_may_change() {
        let before = keys(&[("a/b", "1"), ("a/c", "1"), ("ab", "1")]);
        let after = keys(&[("a/b", "2"), ("a/d", "1"), ("ab", "2")]);
        assert_eq!(changed(&before, &after, &["/a"]), [r#"/ab: "1" -> "2""#]);
        assert_eq!(changed(&before, &after, &[]).len(), 4);
        assert_eq!(changed(&before, &before, &[]), [""; 0]);
    }

    #[test]
    fn a_target_that_is_not_there_is_told_in_both_ways() {
        let (error, status) = (("hotplug-error", "no such file"), ("hotplug-status", "error"));
        let verdict = |ok, said: &[(&str, &str)]| bad_target(ok, "", &keys(said)).verdict;
        assert_eq!(verdict(false, &[error, status]), Verdict::Ok);
        assert_eq!(verdict(false, &[]), Verdict::Warning);
        assert_eq!(verdict(true, &[error, status]), Verdict::Failed);
        // What the stock script does.
        assert_eq!(verdict(false, &[("hotplug-status", "connected")]), Verdict::Failed);
    }
}
