//! `devd --status`: whether a daemon serves this domain, and what it has noted, from the store alone.

use std::time::SystemTime;

use serde_json::{Map, Value, json};
use xen_aodevice::devd::{DaemonError, ServedQemu, Stage, holder, qemus, served, unreadable};
use xen_devstate::XenbusState;
use xs_client::Client;

use super::problem;
use crate::args::Common;
use crate::output::say;
use crate::problem::{Code, Exit, Problem, line, unless_cancelled};

fn stage(stage: Stage) -> String {
    json!(stage).as_str().unwrap_or_default().to_owned()
}

/// The seconds since then.
fn ago(since: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    now.saturating_sub(since)
}

pub(super) async fn run(common: &Common, client: Client) -> Result<Exit, Problem> {
    let tried = "cannot tell of the devices of this domain";
    let looked = async {
        let (holder, devices) = (holder(&client).await?, served(&client).await?);
        Ok::<_, DaemonError>((holder, devices, qemus(&client).await?, unreadable(&client).await?))
    };
    let looked = unless_cancelled(tried, looked).await?;
    let (holder, devices, qemus, unreadable) = looked.map_err(|error| problem(tried, error))?;
    let working =
        devices.iter().filter(|device| matches!(device.stage, Stage::Adding | Stage::Removing)).count();
    let at = |stage| devices.iter().filter(|device| device.stage == stage).count();
    let (failed, postponed) = (at(Stage::Failed), at(Stage::Postponed));
    let none = || {
        let observed = format!("no daemon runs here; devices noted: {}", devices.len());
        Problem::new(
            Code::Of("no_daemon"),
            "nobody serves the devices of this domain",
            observed,
            "start it: xendev devd",
        )
    };
    if common.json {
        let pid = holder.map(|holder| holder.pid);
        let told = json!({"pid": pid, "working": working, "devices": devices, "qemus": qemus, "unreadable": unreadable});
        let Value::Object(told) = told else { return Ok(Exit::Done) };
        if holder.is_none() {
            return Err(told
                .into_iter()
                .fold(none(), |problem, (name, told)| problem.with_detail(&name, told)));
        }
        let told = [("ok".to_owned(), true.into())].into_iter().chain(told).collect::<Map<_, _>>();
        say(format!("{}\n", Value::Object(told)));
        return Ok(Exit::Done);
    }
    let mut text = match holder {
        Some(holder) => {
            let counted = format!("devices: {}, worked on: {working}, failed: {failed}", devices.len());
            format!("{holder} serves; {counted}, to be undone: {postponed}\n")
        }
        None => String::new(),
    };
    for served in &devices {
        let state = served.state.map(XenbusState::digits).unwrap_or_else(|| "gone".to_owned());
        let error = served.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let seconds = ago(served.since);
        let told = format!("{} {} for {seconds} s, state {state}{error}", served.place, stage(served.stage));
        text += &format!("{}\n", line(&told));
    }
    for ServedQemu { domid, pid, ending, running, .. } in &qemus {
        let process = pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
        let stands = match (ending, running) {
            (true, _) => "was told to end, which is waited for",
            (false, true) => "serves devices",
            (false, false) => "has not said that it serves devices",
        };
        text += &format!("the QEMU of domain {domid}{process}: {stands}\n");
    }
    if !unreadable.is_empty() {
        text += &format!("{} nodes among the notes cannot be read\n", unreadable.len());
    }
    for node in &unreadable {
        text += &format!("{}\n", line(node));
    }
    say(text);
    if holder.is_some() { Ok(Exit::Done) } else { Err(none()) }
}
