//! The course of a cell: xendev is brought to the step, struck there, and judged; then the device is
//! detached as a user would do it later.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use super::Setting;
use super::cell::{Cell, End, Operation, Step, Strike};
use super::host::{Host, until};
use super::judge::{self, Remains};
use super::process;
use super::program::{Program, Stdout};
use super::strike;

/// How long xendev may take to get to a step, and to end after the strike: what takes longer hangs.
pub(super) const HANG: Duration = Duration::from_secs(30);

/// Time for what needs none, such as getting into a wait.
pub(super) const MOMENT: Duration = Duration::from_millis(300);

/// Takes a cell's course in a new folder at `path`; returns what was wrong.
pub(super) async fn run(setting: &Setting, cell: Cell, path: PathBuf) -> Result<Vec<String>> {
    let mut host = Host::start(setting, path).await?;
    let mut faults = Vec::new();
    let outcome = take(&mut host, cell, &mut faults).await;
    process::kill_marked(host.folder.path());
    outcome.map(|()| faults)
}

async fn take(host: &mut Host<'_>, cell: Cell, faults: &mut Vec<String>) -> Result<()> {
    let mut program = begin(host, cell).await?;
    if !reach(host, cell, &mut program).await? {
        ensure!(program.has_ended()?, "xendev did not get to this step within {} s", HANG.as_secs());
        // One that does not wait for a reader has done its work all the same.
        if cell.step != Step::Told {
            faults.push("it ended before this step".to_owned());
        }
    }
    if cell.step == Step::Told {
        judge::done(cell, &Remains::look(host).await?, faults);
    }
    strike::strike(host, cell, &mut program).await?;
    let status = strike::outlive(host, cell, &mut program, faults).await?;
    let remains = Remains::look(host).await?;
    note(host, &format!("{cell}: {status:?}"), &program)?;
    if let Some(status) = status {
        judge::end(cell, status, &program, &remains, faults);
    }
    detach_later(host, cell, &remains, faults).await?;
    let log = host.folder.log();
    faults.extend(log.lines().filter(|line| line.starts_with("beside: ")).map(str::to_owned));
    Ok(())
}

/// Makes what the operation needs, and starts it.
async fn begin(host: &mut Host<'_>, cell: Cell) -> Result<Program> {
    let disk = host.folder.disk();
    if cell.operation != Operation::Attach {
        let args = ["block-attach", "1", &disk, "--wait", "connected"];
        let mut attach = host.xendev(&args, Stdout::Read)?;
        let status = attach.ended_within(HANG).await?.context("attaching hangs")?;
        ensure!(status.success(), "cannot attach: {}", attach.stderr.text());
        ensure!(host.folder.devices()?.len() == 1, "attaching has made no device");
    }
    if let Some(end) = cell.absent() {
        host.leave(end);
    }
    if cell.step == Step::Unwritten {
        host.relay.hold();
    }
    if let Some(point) = point(cell) {
        host.folder.close_gate(&point)?;
    }
    if cell.step == Step::Stubborn {
        host.folder.make_stubborn()?;
    }
    if cell.operation == Operation::Attach && cell.strike == Strike::IntTwice {
        // So that the second signal finds the roll-back in its script.
        host.folder.close_gate("remove-begun")?;
    }
    let backend_timeout = if cell.step == Step::Untaken { "4" } else { "10" };
    let mut args = match cell.operation {
        Operation::Attach => {
            vec!["block-attach", "1", &disk, "--backend-timeout", backend_timeout]
        }
        Operation::Detach => vec!["block-detach", "1", "xvda", "--timeout", "8"],
        Operation::ForceDetach => vec!["block-detach", "--force", "1", "xvda", "--timeout", "8"],
    };
    if cell.step == Step::Guest {
        args.extend(["--wait", "connected"]);
    }
    args.extend(["--json", "--verbose"]);
    host.xendev(&args, if cell.step == Step::Told { Stdout::Full } else { Stdout::Read })
}

/// Where the script is to stop.
fn point(cell: Cell) -> Option<String> {
    let point = match (cell.step, cell.operation) {
        (Step::Begun | Step::Stubborn, _) => "begun",
        (Step::Midway, _) => "midway",
        (Step::Reported | Step::Unsettled, Operation::Attach) => "reported",
        (Step::Unsettled, _) => "midway",
        _ => return None,
    };
    Some(format!("{}-{point}", cell.action()))
}

/// Waits until xendev is at the step, or has ended, or too long; whether it is at the step.
async fn reach(host: &Host<'_>, cell: Cell, program: &mut Program) -> Result<bool> {
    let point = point(cell).unwrap_or_default();
    if cell.step == Step::Unsettled {
        let is_at = until(HANG, async || Ok(host.folder.is_at(&point))).await?;
        ensure!(is_at, "the script did not get to {point}");
        host.relay.hold();
        host.folder.open_gate(&point)?;
    }
    let mut ended = false;
    let reached = until(HANG, async || {
        ended = program.has_ended()?;
        Ok(ended
            || match cell.step {
                Step::Unwritten | Step::Unsettled => host.relay.is_holding(),
                Step::Written | Step::Untaken => host.backend("state").await?.is_some(),
                Step::Closing => host.backend("state").await?.as_deref() == Some("5"),
                Step::Begun | Step::Stubborn | Step::Midway | Step::Reported => host.folder.is_at(&point),
                Step::Guest => host.folder.log().contains("end add"),
                Step::Told => process::is_stuck_writing(program.pid()),
            })
    })
    .await?;
    if cell.step == Step::Guest {
        // From the script's end to the wait it is not far.
        sleep(MOMENT).await;
    }
    Ok(reached && !ended)
}

/// Detaches the device as a user would do it later: plainly, and if that fails, again when the guest
/// answers. Of a domain that is gone nobody can answer, so there it may be by force.
async fn detach_later(
    host: &mut Host<'_>,
    cell: Cell,
    before: &Remains,
    faults: &mut Vec<String>,
) -> Result<()> {
    if cell.step != Step::Untaken {
        host.enter(End::Backend).await?;
    }
    let mut code = detach(host, false, faults).await?;
    if code != Some(0) && !before.is_clean(cell) && host.guest_is_mute() {
        host.enter(End::Frontend).await?;
        code = detach(host, false, faults).await?;
    }
    let mut after = Remains::look(host).await?;
    if cell.strike == Strike::DomainGone && !after.is_clean(cell) {
        code = detach(host, true, faults).await?;
        after = Remains::look(host).await?;
    }
    if code != Some(0) && !before.is_clean(cell) {
        faults.push(format!("a later detach ended with {code:?}"));
    }
    if !after.is_clean(cell) {
        faults.push(format!("after a later detach there is {after}"));
    }
    strike::processes_end(host, "a later detach", faults).await
}

async fn detach(host: &Host<'_>, force: bool, faults: &mut Vec<String>) -> Result<Option<i32>> {
    let mut args = vec!["block-detach", "1", "xvda", "--verbose", "--timeout"];
    args.push(if host.guest_is_mute() { "2" } else { "8" });
    if force {
        args.push("--force");
    }
    let mut program = host.xendev(&args, Stdout::Read)?;
    let Some(status) = program.ended_within(HANG).await? else {
        program.kill().await?;
        faults.push("a later detach hangs".to_owned());
        return Ok(None);
    };
    note(host, &format!("{}: {status:?}", args.join(" ")), &program)?;
    judge::no_panic(status, &program, faults);
    Ok(status.code())
}

/// Notes in the folder what a run said.
fn note(host: &Host<'_>, what: &str, program: &Program) -> Result<()> {
    let file = host.folder.path().join("story");
    let mut story = fs::read_to_string(&file).unwrap_or_default();
    let (stdout, stderr) = (program.stdout.text(), program.stderr.text());
    story.push_str(&format!("== {what}\n-- stdout\n{stdout}\n-- stderr\n{stderr}\n"));
    Ok(fs::write(file, story)?)
}
