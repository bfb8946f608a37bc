//! A good add and its removal: what the contract demands of both.

use std::time::Duration;

use xen_hotplug::Ending;

use super::check::{Check, Finding, Verdict};
use super::host::Host;
use super::judge;
use super::scene::{Device, GUEST, Ran, Scene, Stop, Values};

/// The least time that a run gets once it is known how long a good one takes.
const LEAST: Duration = Duration::from_secs(5);

/// How many nodes that a script has changed are told one by one.
const CHANGES_SHOWN: usize = 20;

/// What to do about what a script writes outside of its backend's directory.
const OUTSIDE: &str =
    "let it write below XENBUS_PATH alone: what is elsewhere belongs to others, and nobody removes it";

/// Why a check says nothing of a script that does not undo its work.
pub(super) const NOT_UNDONE: &str = "remove does not undo what add makes, even if nothing goes wrong";

/// What the checks that follow build upon.
pub(super) struct Good {
    /// How long the add took.
    pub(super) took: Duration,
    /// Whether the removal undid it.
    pub(super) undone: bool,
}

/// Adds a device and removes it again, with all that is to be seen of that. Yields nothing if the add has failed: then
/// nothing else can be said of the script.
pub(super) async fn good(scene: &mut Scene, found: &mut Vec<Finding>) -> Result<Option<Good>, Stop> {
    let target = scene.target("disk.img")?;
    let device = scene.make(GUEST, 0, &target).await?;
    let (host, store) = (scene.host(), scene.dump().await?);
    let ran = scene.add(&device).await?;
    found.push(ends(&ran, scene.limit));
    if ran.report.ending == Ending::TimedOut {
        scene.clean(&host).await;
        return Ok(None);
    }
    let add = Finding::ok(Check::Add);
    if !ran.success() {
        let hint = "see what it says; give it a target that is there with --target, and variables with -e, if it needs them";
        found.push(add.with(Verdict::Failed, ran.told(), hint));
        scene.clean(&host).await;
        return Ok(None);
    }
    found.push(add);
    found.push(judge::reports(scene.subject.kind, &ran.keys));
    if !scene.is_vif() {
        found.push(judge::device(&ran.keys));
    }
    let mtu = device.frontend.join("mtu")?;
    let but: &[&str] = if scene.is_vif() { &[&device.backend, &mtu] } else { &[&device.backend] };
    let mut outside = Finding::ok(Check::Outside);
    let took_others = outside_of(&mut outside, scene, &store, but).await?;
    let at = found.len();
    found.push(outside);
    found.push(processes(scene));
    let took = ran.report.duration;
    // From here on one that hangs is known sooner.
    scene.limit = scene.limit.min((took * 10).max(LEAST));
    let store = scene.dump().await?;
    let mut outside = Finding::ok(Check::Outside);
    let undone = remove(scene, &device, &ran, (&host, &store), &mut outside, found).await?;
    // Who takes what is not its own is not run again.
    let goes_on = !took_others && outside.observed.is_empty();
    for observed in outside.observed {
        found[at].note(Verdict::Failed, format!("remove: {observed}"), OUTSIDE);
    }
    scene.clean(&host).await;
    scene.unmake(&device).await?;
    Ok(goes_on.then_some(Good { took, undone }))
}

/// What a run has changed in the store outside of these nodes, which is put back as it was. Whether something was removed
/// there.
async fn outside_of(
    outside: &mut Finding,
    scene: &Scene,
    before: &Values,
    but: &[&str],
) -> Result<bool, Stop> {
    let changes = judge::changed(before, &scene.dump().await?, but);
    if changes.is_empty() {
        return Ok(false);
    }
    for change in changes.iter().take(CHANGES_SHOWN) {
        outside.note(Verdict::Failed, change.clone(), OUTSIDE);
    }
    if let Some(more) = changes.len().checked_sub(CHANGES_SHOWN).filter(|more| *more > 0) {
        outside.note(Verdict::Failed, format!("and {more} more"), OUTSIDE);
    }
    scene.restore(before, but).await?;
    Ok(changes.iter().any(|change| change.ends_with(judge::GONE)))
}

fn ends(ran: &Ran, limit: Duration) -> Finding {
    let ends = Finding::ok(Check::Ends);
    if ran.report.ending != Ending::TimedOut {
        return ends;
    }
    let hint = "let it wait for nothing without a limit, and not read standard input, which is /dev/null; a script that \
                needs longer is checked with --script-timeout";
    ends.with(Verdict::Failed, format!("add has not ended within {limit:?}"), hint)
}

/// What outlived an add.
fn processes(scene: &Scene) -> Finding {
    let mut finding = Finding::ok(Check::Processes);
    for survivor in scene.survivors() {
        if survivor.locks.is_empty() {
            finding.observed.push(format!("{survivor} goes on, which remove must end"));
        } else {
            let hint = "close the descriptors of locks in what is to go on (exec 200>&-): nobody else gets the lock as \
                        long as it lives";
            finding.note(Verdict::Failed, survivor.to_string(), hint);
        }
    }
    finding
}

async fn remove(
    scene: &Scene,
    device: &Device,
    added: &Ran,
    (before, store): (&Host, &Values),
    outside: &mut Finding,
    found: &mut Vec<Finding>,
) -> Result<bool, Stop> {
    const HINT: &str = "let remove undo all that add made, by the keys that add has written";
    let mut finding = Finding::ok(Check::Remove);
    let ran = scene.take(device).await?;
    outside_of(outside, scene, store, &[&device.backend]).await?;
    if !ran.report.success() {
        finding.note(
            Verdict::Failed,
            format!("remove {}", ran.told()),
            "let remove exit with 0 when it has done its work",
        );
    }
    let after = scene.host();
    let (files, left): (Vec<_>, Vec<_>) =
        after.since(before).into_iter().partition(|what| what.starts_with("file "));
    finding.left("left: ", &left, HINT);
    for file in files {
        finding.note(
            Verdict::Warning,
            format!("left: {file}"),
            "remove the files of locks when they are not needed any more",
        );
    }
    let survivors = scene.survivors();
    for survivor in &survivors {
        finding.note(Verdict::Failed, format!("left: {survivor}"), "let remove end what add has started");
    }
    let told: Vec<&str> =
        added.keys.keys().map(String::as_str).filter(|key| ran.keys.contains_key(*key)).collect();
    let told: Vec<&str> =
        told.into_iter().filter(|key| ["node", "physical-device", "pid", "minor"].contains(key)).collect();
    if !told.is_empty() && finding.verdict == Verdict::Ok {
        finding
            .observed
            .push(format!("the keys {} stay, which go with the backend's directory", told.join(", ")));
    }
    let is_undone = finding.verdict != Verdict::Failed;
    found.push(finding);
    if !outside.observed.is_empty() {
        found.push(Finding::skipped(Check::RemoveTwice, "remove changes what is not its own"));
    } else if is_undone {
        found.push(again(scene, device).await?);
    } else {
        found.push(Finding::skipped(Check::RemoveTwice, NOT_UNDONE));
    }
    Ok(is_undone)
}

/// A second remove: what the first gave back may be another device's by then.
async fn again(scene: &Scene, device: &Device) -> Result<Finding, Stop> {
    const HINT: &str = "let remove look whether what the keys name is still what add made of this target (losetup -j) before \
                        it gives it back";
    let mut finding = Finding::ok(Check::RemoveTwice);
    let other = match scene.has_several() {
        true => Some(scene.make(GUEST, 1, &scene.target("other.img")?).await?),
        false => None,
    };
    if let Some(other) = &other
        && !scene.add(other).await?.success()
    {
        finding.observed.push("a second device could not be added in between".to_owned());
    }
    if let Some(other) = &other {
        reuse(scene, device, other).await?;
    }
    let before = scene.host();
    let ran = scene.take(device).await?;
    let own = format!("interface vif{}.{} ", device.id.fe, device.id.devid);
    let changed = scene.host().without_files().since(&before.without_files());
    let changed: Vec<String> = changed.into_iter().filter(|changed| !changed.starts_with(&own)).collect();
    finding.left(if other.is_some() { "of another device: " } else { "" }, &changed, HINT);
    if !ran.report.success() && finding.verdict == Verdict::Ok {
        let hint = "let remove exit with 0 when there is nothing left to undo";
        finding.note(Verdict::Warning, format!("the second remove {}", ran.told()), hint);
    }
    if let Some(other) = &other {
        scene.take(other).await?;
        scene.unmake(other).await?;
    }
    Ok(finding)
}

/// Numbers of loop devices are used again: what the first device's keys name is the second's then, also where the kernel has
/// just given it another one.
async fn reuse(scene: &Scene, device: &Device, other: &Device) -> Result<(), Stop> {
    let (own, others) = (scene.keys(&device.backend).await?, scene.keys(&other.backend).await?);
    if !others.get("node").is_some_and(|node| node.starts_with("/dev/loop")) {
        return Ok(());
    }
    for key in
        ["node", "physical-device", "physical-device-path"].into_iter().filter(|key| own.contains_key(*key))
    {
        if let Some(value) = others.get(key) {
            scene.client.write(&device.backend.join(key)?, value.clone()).await?;
        }
    }
    Ok(())
}
