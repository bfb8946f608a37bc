//! What goes wrong around a script: its backend's directory vanishes, its target does not exist or is deleted, it is killed.

use std::fs;

use tokio::time::sleep;

use super::check::{Check, Finding, Verdict};
use super::course::{Good, NOT_UNDONE};
use super::judge;
use super::scene::{GUEST, Scene, Stop};

/// When an add is killed: as soon as it has made something on the host, or after so much of the time of a good one, in percent.
const KILLED: [Option<u32>; 10] =
    [None, Some(10), Some(20), Some(30), Some(40), Some(50), Some(60), Some(70), Some(80), Some(90)];

/// The backend's directory vanishes before the script that removes is run: once it is run without, and then in a copy.
pub(super) async fn vanished(scene: &Scene, good: &Good, found: &mut Vec<Finding>) -> Result<(), Stop> {
    let (mut vanished, mut copy) = (Finding::ok(Check::Vanished), Finding::ok(Check::Copy));
    let before = scene.host();
    let device = scene.make(GUEST, 0, &scene.target("disk.img")?).await?;
    let base = scene.host();
    if !scene.add(&device).await?.success() {
        scene.clean(&before).await;
        scene.unmake(&device).await?;
        found.extend(
            [Check::Vanished, Check::Copy].map(|check| Finding::skipped(check, "another add has failed")),
        );
        return Ok(());
    }
    let keys = scene.keys(&device.backend).await?;
    scene.unmake_backend(&device).await?;
    scene.take(&device).await?;
    for (key, value) in scene.keys(&device.backend).await? {
        let hint = "let remove write nothing: a write brings the backend's directory back when that is gone (B-21), and \
                    the next attach of the device finds it";
        vanished.note(Verdict::Failed, format!("{}/{key} is there again: {value:?}", device.backend), hint);
    }
    scene.unmake_backend(&device).await?;
    let ran = scene.take_in_copy(&device, &keys).await?;
    // An interface went with the backend.
    let base = if scene.is_vif() { before.clone() } else { base };
    let left = scene.host().without_files().since(&base.without_files());
    if !left.is_empty() {
        let hint = "let it take XENBUS_PATH as it is: relative to its domain, or absolute, where xendev has put a copy of \
                    the keys for a backend that is gone";
        copy.left(&format!("remove {}; left: ", ran.told()), &left, hint);
    }
    scene.clean(&before).await;
    scene.unmake(&device).await?;
    let copy = if good.undone { copy } else { Finding::skipped(copy.check, NOT_UNDONE) };
    found.extend([vanished, copy]);
    Ok(())
}

/// A target that does not exist; of an interface, that itself.
pub(super) async fn bad_target(scene: &Scene, good: &Good) -> Result<Finding, Stop> {
    let before = scene.host();
    let missing = scene.file("missing.img");
    let missing =
        if scene.has_own_targets() { scene.target_of(&missing) } else { missing.display().to_string() };
    let device = scene.make(GUEST, 2, &missing).await?;
    if scene.is_vif() {
        super::sandbox::ip(&format!("link delete vif{}.2", device.id.fe))?;
    }
    let ran = scene.add(&device).await?;
    let mut finding = judge::bad_target(ran.report.success(), &ran.told(), &ran.keys);
    scene.take(&device).await?;
    scene.unmake(&device).await?;
    let left = scene.host().without_files().since(&before.clone().without_files());
    let left = if good.undone { left } else { Vec::new() };
    finding.left("left after a remove: ", &left, "let add undo what it has made before it fails");
    scene.clean(&before).await;
    Ok(finding)
}

/// The file behind a disk is deleted while that is attached.
pub(super) async fn target_gone(scene: &Scene, good: &Good) -> Result<Finding, Stop> {
    let mut finding = Finding::ok(Check::TargetGone);
    if !good.undone {
        return Ok(Finding::skipped(finding.check, NOT_UNDONE));
    }
    if !scene.has_own_targets() {
        return Ok(Finding::skipped(
            finding.check,
            "the target is not a file of ours, which could be deleted",
        ));
    }
    let before = scene.host();
    let target = scene.target("deleted.img")?;
    let device = scene.make(GUEST, 0, &target).await?;
    if scene.add(&device).await?.success() {
        fs::remove_file(scene.file("deleted.img")).map_err(|error| error.to_string())?;
        let ran = scene.take(&device).await?;
        let left = scene.host().without_files().since(&before.clone().without_files());
        let hint = "let remove decide by the keys that add has written (node), and not by what the target is now (B-47)";
        finding.left(&format!("remove {}; left: ", ran.told()), &left, hint);
    } else {
        finding = Finding::skipped(finding.check, "another add has failed");
    }
    scene.clean(&before).await;
    scene.unmake(&device).await?;
    Ok(finding)
}

/// An add is killed, here and there; remove has to undo it, and another add must go well then. Yields whether it does.
pub(super) async fn killed(scene: &Scene, good: &Good, found: &mut Vec<Finding>) -> Result<bool, Stop> {
    let target = scene.target("disk.img")?;
    let before = scene.host();
    let mut killed = Finding::ok(Check::Killed);
    for when in KILLED {
        let (when, left) = kill(scene, good, when, &target).await?;
        killed.left(
            &when,
            &left,
            "let add note in the store what it is about to make before it makes it, and let remove look whether that was \
             made; xendev gives back loop devices that a script did not report, and xl does not",
        );
    }
    found.push(if good.undone { killed } else { Finding::skipped(killed.check, NOT_UNDONE) });

    let mut again = Finding::ok(Check::Again);
    let device = scene.make(GUEST, 0, &target).await?;
    let ran = scene.add(&device).await?;
    if !ran.success() {
        let hint = "let locks be those of flock(1), which end with who holds them, and let add begin anew whatever is left of \
                    another one";
        again.note(Verdict::Failed, format!("add {}", ran.told()), hint);
    }
    scene.take(&device).await?;
    scene.clean(&before).await;
    scene.unmake(&device).await?;
    found.push(again);
    Ok(ran.success())
}

/// Kills an add, and runs the script that removes then. Yields what was done, in words, and what is left.
async fn kill(
    scene: &Scene,
    good: &Good,
    percent: Option<u32>,
    target: &str,
) -> Result<(String, Vec<String>), Stop> {
    let before = scene.host();
    let device = scene.make(GUEST, 0, target).await?;
    let base = scene.host();
    let when = match percent {
        Some(percent) => {
            scene.add_and_kill(&device, sleep(good.took * percent / 100)).await?;
            format!("killed after {percent} % of its time")
        }
        None => {
            scene.add_and_kill(&device, scene.made_since(&base)).await?;
            "killed when it had made something".to_owned()
        }
    };
    let ran = scene.take(&device).await?;
    if scene.is_vif() {
        scene.unmake_backend(&device).await?;
    }
    // A file of a lock that nobody holds is harmless.
    let mut left = scene.host().without_files().since(&before.clone().without_files());
    left.extend(scene.survivors().iter().map(ToString::to_string));
    scene.clean(&before).await;
    scene.unmake(&device).await?;
    Ok((format!("{when}; remove {}; left: ", ran.told()), left))
}
