//! `devd --status`: what the daemon of this domain has noted, from the store and its lock alone.

use std::path::Path;
use std::time::SystemTime;

use aodevice::devd::{Served, Stage, served};
use devstate::XenbusState;
use serde_json::{Value, json};
use xs_client::Client;

use super::lock;
use crate::args::Common;
use crate::output::say;
use crate::problem::{Exit, Problem, line, unless_cancelled};

fn device(served: &Served) -> Value {
    json!(served)
}

fn stage(stage: Stage) -> String {
    json!(stage).as_str().unwrap_or_default().to_owned()
}

/// The seconds since then.
fn ago(since: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    now.saturating_sub(since)
}

pub(super) async fn run(common: &Common, run_dir: &Path, client: Client) -> Result<Exit, Problem> {
    let tried = "cannot tell of the devices of this domain";
    let devices = unless_cancelled(tried, served(&client)).await?;
    let devices = devices.map_err(|error| Problem::store(tried, &error))?;
    let pid = lock::daemon(run_dir);
    let working =
        devices.iter().filter(|device| matches!(device.stage, Stage::Adding | Stage::Removing)).count();
    if common.json {
        let devices: Vec<Value> = devices.iter().map(device).collect();
        say(format!("{}\n", json!({"ok": true, "pid": pid, "working": working, "devices": devices})));
        return Ok(Exit::Done);
    }
    let mut text = match pid {
        Some(pid) => format!("process {pid} serves {} devices, and works on {working}\n", devices.len()),
        None => format!("no daemon runs here; {} devices are noted\n", devices.len()),
    };
    for served in &devices {
        let state = served.state.map(XenbusState::digits).unwrap_or_else(|| "gone".to_owned());
        let error = served.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let seconds = ago(served.since);
        let told = format!("{} {} for {seconds} s, state {state}{error}", served.place, stage(served.stage));
        text += &format!("{}\n", line(&told));
    }
    say(text);
    Ok(Exit::Done)
}
