//! The contestants as programs: each lets so many disks live on the server at `socket=`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use peer_program::{Figures, Task};
use xs_client::{Client, Config};

use super::ours::Ours;
use super::{drivers, raw};

/// What a program prints: microseconds a disk, and what it knows of its requests.
pub(super) fn figures(
    disks: usize,
    [attach, detach]: [Duration; 2],
    (requests, retries): (usize, usize),
) -> Figures {
    let each = |value: f64| value / disks as f64;
    vec![
        ("us_each", each((attach + detach).as_secs_f64() * 1e6)),
        ("attach_us", each(attach.as_secs_f64() * 1e6)),
        ("detach_us", each(detach.as_secs_f64() * 1e6)),
        ("requests_each", each(requests as f64)),
        ("retries", retries as f64),
    ]
}

/// Does the task; `None` if it has nothing to print.
pub(in super::super) fn run(task: &Task) -> Result<Option<Figures>> {
    let socket = Path::new(task.text("socket")?);
    let disks = task.number("disks")?;
    match task.workload.as_str() {
        "drivers" => drivers::run(socket, disks).map(|()| None),
        "raw" => raw::run(socket, disks, task.text("target")?).map(Some),
        "ours" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = Client::connect_unix(socket, Config::default()).await?;
                // Beside the target there are no configurations of libxl.
                let target = task.text("target")?;
                let folder = Path::new(target).parent().unwrap_or(Path::new("/"));
                let ours = Ours::new(client.clone(), target, folder).await?;
                let before = client.stats();
                let took = ours.lives(disks).await?;
                let after = client.stats();
                let requests = (after.requests - before.requests) as usize;
                Ok(Some(figures(disks, took, (requests, (after.conflicts - before.conflicts) as usize))))
            })
        }
        other => bail!("there is no contestant {other}"),
    }
}
