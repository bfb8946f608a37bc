//! Other devices and other guests beside, and other surroundings than usual.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::check::{Check, Finding, Verdict};
use super::course::Good;
use super::scene::{Device, GUEST, OTHER, Ran, Scene, Stop};

/// Two devices are added at once, and removed at once.
pub(super) async fn side_by_side(scene: &Scene, good: &Good) -> Result<Finding, Stop> {
    const HINT: &str = "name files of its own by the device (XENBUS_PATH, or mktemp), and take a lock (flock) where two of it \
                        would choose the same thing";
    let mut finding = Finding::ok(Check::SideBySide);
    if !scene.has_several() {
        return Ok(Finding::skipped(finding.check, "what --target says can be said of one device alone"));
    }
    let before = scene.host();
    let one = scene.make(GUEST, 0, &scene.target("disk.img")?).await?;
    let two = scene.make(GUEST, 1, &scene.target("other.img")?).await?;
    let base = scene.host().without_files();
    let (first, second) = tokio::try_join!(scene.add(&one), scene.add(&two))?;
    for (device, ran) in [(&one, &first), (&two, &second)] {
        if !ran.success() {
            finding.note(Verdict::Failed, format!("add of {} {}", device.id, ran.told()), HINT);
        }
    }
    let numbers = |ran: &Ran| ran.key("physical-device").map(str::to_owned);
    if let Some(numbers) = numbers(&first).filter(|first| numbers(&second).as_ref() == Some(first)) {
        finding.note(Verdict::Failed, format!("both devices have physical-device {numbers}"), HINT);
    }
    tokio::try_join!(scene.take(&one), scene.take(&two))?;
    let left = scene.host().without_files().since(&base);
    let left = if good.undone { left } else { Vec::new() };
    finding.left("left after both were removed: ", &left, HINT);
    scene.clean(&before).await;
    scene.unmake(&one).await?;
    scene.unmake(&two).await?;
    Ok(finding)
}

/// A second guest is to get what the first one may write.
pub(super) async fn shared(scene: &Scene) -> Result<Finding, Stop> {
    let mut finding = Finding::ok(Check::Shared);
    if scene.is_vif() {
        return Ok(Finding::skipped(finding.check, "interfaces share nothing"));
    }
    let before = scene.host();
    let target = scene.target("disk.img")?;
    let first = scene.make(GUEST, 0, &target).await?;
    let added = scene.add(&first).await?;
    let base = scene.host();
    let second = scene.make_with(OTHER, 0, &target, true, &scene.subject.script).await?;
    let ran = scene.add(&second).await?;
    if !added.success() {
        finding = Finding::skipped(finding.check, "another add has failed");
    } else if ran.success() {
        let observed = "another guest was given the same target, to write to it";
        let hint = "let add look who else has the target (the keys params, mode and physical-device of other backends, the \
                    vm node of their guests), and fail with hotplug-status=busy; two writers destroy it";
        finding.note(Verdict::Failed, observed, hint);
    }
    // As the toolstack rolls the attach back.
    scene.take(&second).await?;
    if finding.verdict == Verdict::Ok {
        let hint = "let remove give back only what this device's own add has made";
        finding.left("of the first guest, when the second was refused: ", &scene.host().lost(&base), hint);
    }
    scene.unmake(&second).await?;
    scene.take(&first).await?;
    scene.clean(&before).await;
    scene.unmake(&first).await?;
    Ok(finding)
}

/// Without the variables that a login has.
pub(super) async fn environment(scene: &Scene) -> Result<Finding, Stop> {
    let finding = Finding::ok(Check::Environment);
    let wrapper = scene.sandbox.path("minimal");
    let kept: Vec<&str> = scene.subject.variables.iter().map(|(name, _)| name.as_str()).collect();
    let unset: Vec<&str> = ["HOME", "TERM", "LANG"].into_iter().filter(|name| !kept.contains(name)).collect();
    let script = scene.subject.script.display().to_string().replace('\'', r"'\''");
    let text = format!("#!/bin/sh\nunset {}\nscript='{script}'\nexec '{script}' \"$@\"\n", unset.join(" "));
    let made =
        fs::write(&wrapper, text).and_then(|()| fs::set_permissions(&wrapper, Permissions::from_mode(0o755)));
    made.map_err(|error| error.to_string())?;
    let hint = "let it set what it needs itself: a toolstack that a service manager has started has no HOME, TERM and LANG";
    add_and_take(scene, finding, hint, &wrapper).await
}

/// The stock scripts look at their locks by way of `/dev/stdin`, and try for ever if that is missing.
pub(super) async fn no_stdin(scene: &Scene) -> Result<Finding, Stop> {
    let finding = Finding::ok(Check::NoStdin);
    let Some(_hidden) = scene.sandbox.without_stdin() else {
        return Ok(Finding::skipped(
            finding.check,
            "/dev/stdin cannot be hidden here (it needs root and overlayfs)",
        ));
    };
    let hint = "use /proc/self/fd/0, or a descriptor of its own, and give up after some time: the containers of some \
                toolstacks have no /dev/stdin";
    add_and_take(scene, finding, hint, &scene.subject.script).await
}

async fn add_and_take(
    scene: &Scene,
    mut finding: Finding,
    hint: &str,
    script: &Path,
) -> Result<Finding, Stop> {
    let before = scene.host();
    let target = scene.target("disk.img")?;
    let device: Device = scene.make_with(GUEST, 0, &target, scene.subject.writable, script).await?;
    let ran = scene.add(&device).await?;
    if !ran.success() {
        finding.note(Verdict::Failed, format!("add {}", ran.told()), hint);
    }
    scene.take(&device).await?;
    scene.clean(&before).await;
    scene.unmake(&device).await?;
    Ok(finding)
}
