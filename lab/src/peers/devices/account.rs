//! Every request of one life of a disk of ours, in order, as a tap between client and server sees them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use tokio::net::UnixStream;
use xs_client::{Client, Config};

use super::drivers;
use super::ours::Ours;
use super::tap::{Count, Line, Tap, told};
use super::world::{Disk, Running};

/// The phases of a life, and what went through in each.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) phases: [(&'static str, Vec<Line>); 2],
    /// How many requests the client says that it has sent.
    #[cfg(test)]
    pub(super) counted: u64,
    /// The disk's target.
    #[cfg(test)]
    pub(super) target: String,
}

impl Account {
    /// One life on a server that has no disk yet.
    pub(super) fn take(server: &Running) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        drivers::start(&server.socket(), 1)?;
        let folder = tempfile::tempdir()?;
        let target = folder.path().join("disk.img");
        std::fs::write(&target, "")?;
        let target = target.display().to_string();
        runtime.block_on(async {
            let (tap, listing) = Tap::new(UnixStream::connect(server.socket()).await?);
            let client = Client::over(tap, Config::default());
            let ours = Ours::new(client.clone(), &target, folder.path()).await?;
            // A toolstack is made once, not for each device.
            listing.take();
            #[cfg(test)]
            let before = client.stats().requests;
            ours.add(Disk(0)).await?;
            let attach = listing.take();
            ours.remove(Disk(0)).await?;
            Ok(Self {
                phases: [("attach", attach), ("detach", listing.take())],
                #[cfg(test)]
                counted: client.stats().requests - before,
                #[cfg(test)]
                target,
            })
        })
    }

    /// Requests and bursts of the whole life.
    pub(super) fn total(&self) -> Count {
        let counts = self.phases.each_ref().map(|(_, lines)| Count::of(lines));
        counts.iter().fold(Count::default(), |sum, count| Count {
            requests: sum.requests + count.requests,
            bursts: sum.bursts + count.bursts,
        })
    }

    /// How often each type was asked, a line per phase.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for (phase, lines) in &self.phases {
            let mut types: BTreeMap<String, usize> = BTreeMap::new();
            for line in lines {
                if let Line::Request { op, .. } = line {
                    *types.entry(format!("{op:?}")).or_default() += 1;
                }
            }
            let Count { requests, bursts } = Count::of(lines);
            let types: Vec<_> = types.iter().map(|(op, count)| format!("{count} {op}")).collect();
            _ = writeln!(text, "{phase}: {requests} requests in {bursts} bursts: {}", types.join(", "));
        }
        let Count { requests, bursts } = self.total();
        _ = writeln!(text, "whole life: {requests} requests in {bursts} bursts");
        text
    }

    /// Every request with its path.
    pub(super) fn listing(&self) -> String {
        self.phases.iter().map(|(phase, lines)| format!("{phase}\n{}", told(lines))).collect()
    }
}
