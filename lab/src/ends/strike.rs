//! What strikes xendev, and what becomes of its peers afterwards.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tokio::time::sleep;

use super::cell::{Cell, End, Operation, Step, Strike};
use super::course::{HANG, MOMENT};
use super::host::{Host, until};
use super::process;
use super::program::Program;

/// How soon xendev is to end when it is cancelled before it has written anything.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How soon a script's processes are to be gone: they may have some seconds to end by themselves.
const SOON: Duration = Duration::from_secs(5);

/// Strikes.
pub(super) async fn strike(host: &mut Host<'_>, cell: Cell, program: &mut Program) -> Result<()> {
    match cell.strike {
        Strike::IntTwice => {
            program.signal(Signal::INT)?;
            if cell.operation == Operation::Attach && cell.step != Step::Unwritten {
                let limit = Duration::from_secs(1);
                until(limit, async || Ok(program.has_ended()? || host.folder.is_at("remove-begun"))).await?;
            }
            // Two that come at once are one request.
            sleep(MOMENT).await;
            program.signal(Signal::INT)
        }
        Strike::StdoutClosed => {
            program.stdout.close().await;
            Ok(())
        }
        Strike::StderrClosed => {
            program.stderr.close().await;
            Ok(())
        }
        Strike::StderrClosedInt => {
            program.stderr.close().await;
            sleep(MOMENT).await;
            program.signal(Signal::INT)
        }
        Strike::StoreCut => host.cut_store().await,
        Strike::StoreKilled => host.lose_store().await,
        Strike::DomainGone => host.end_guest().await,
        Strike::Hup | Strike::Int | Strike::Term | Strike::Kill => {
            cell.strike.signal().map_or(Ok(()), |signal| program.signal(signal))
        }
    }
}

/// Lets everything go on, waits for the end of xendev, and looks for processes that are left. `None`
/// if it had to be killed.
///
/// After a signal, a script that stands at a gate stays there, and a guest that does not answer stays
/// mute: xendev has to end without them, and nothing else makes the script end.
pub(super) async fn outlive(
    host: &mut Host<'_>,
    cell: Cell,
    program: &mut Program,
    faults: &mut Vec<String>,
) -> Result<Option<ExitStatus>> {
    if cell.strike.signal().is_some() {
        if cell.step == Step::Unwritten {
            if program.ended_within(AT_ONCE).await?.is_none() {
                faults.push(format!(
                    "it heeds no signal for {} s, as long as the store is mute",
                    AT_ONCE.as_secs()
                ));
            }
        } else {
            sleep(MOMENT).await;
        }
    } else {
        sleep(MOMENT).await;
        host.folder.open_gates()?;
        host.enter(End::Frontend).await?;
    }
    host.relay.release();
    program.stdout.drain();
    let closes_late = cell.step == Step::Closing && cell.strike.signal().is_some();
    if cell.step != Step::Untaken && !closes_late {
        host.enter(End::Backend).await?;
    }
    let status = program.ended_within(HANG).await?;
    if status.is_none() {
        faults.push(format!("it hangs: it has not ended after {} s", HANG.as_secs()));
        program.kill().await?;
    }
    processes_end(host, "it", faults).await?;
    host.folder.open_gates()?;
    Ok(status)
}

/// Demands that soon after the end of a run none of its processes is left.
pub(super) async fn processes_end(host: &Host<'_>, run: &str, faults: &mut Vec<String>) -> Result<()> {
    let folder = host.folder.path();
    if !until(SOON, async || Ok(process::with_mark(folder).is_empty())).await? {
        let left: Vec<String> = process::with_mark(folder).into_iter().map(|(_, line)| line).collect();
        faults.push(format!("{run} has ended, and there runs: {}", left.join("; ")));
    }
    Ok(())
}
