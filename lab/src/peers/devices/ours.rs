//! Ours: the toolstack as a library, with its defaults, over one connection.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use xen_aodevice::vbd::{Vbd, Vdev};
use xen_aodevice::{Device, Failure, Force, Kind, Success, Toolstack, WaitFor};
use xen_hotplug::{Ending, Limits, Output, Permit, Report, Request, Runner};
use xs_client::{Client, DomId};

use super::world::Disk;

/// Devices under way at one time, as many as a [`xen_aodevice::Plan`] has.
const AT_ONCE: usize = 16;

/// A hotplug script that does nothing, and that in no time.
#[derive(Debug)]
struct NoScript;

impl Runner for NoScript {
    fn run_if<'a>(
        &'a self,
        _: &'a Request,
        _: &'a Limits,
        _: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            let ending = if permit.await { Ending::Exited(0) } else { Ending::Withdrawn };
            Report::new(ending, Output::default(), Duration::ZERO)
        })
    }
}

/// The toolstack, whose targets are this file; `libxl` is an empty folder.
pub(super) struct Ours {
    toolstack: Toolstack,
    target: String,
    cancel: CancellationToken,
}

impl Ours {
    pub(super) async fn new(client: Client, target: &str, libxl: &Path) -> Result<Self> {
        let toolstack = Toolstack::new(client, Arc::new(NoScript)).await?.with_libxl_dir(libxl);
        Ok(Self { toolstack, target: target.to_owned(), cancel: CancellationToken::new() })
    }

    pub(super) async fn add(&self, disk: Disk) -> Result<Success> {
        let vbd = Device::Vbd(Vbd::new(&*self.target, Vdev::from_devid(disk.devid() as u32)));
        let added = self.toolstack.add(DomId(disk.domid() as u32), &vbd, WaitFor::Connected, &self.cancel);
        added.await.map_err(failed)
    }

    pub(super) async fn remove(&self, disk: Disk) -> Result<Success> {
        let (fe, devid) = (DomId(disk.domid() as u32), disk.devid() as u32);
        let removed = self.toolstack.remove(fe, (Kind::Vbd, devid), Force::Never, &self.cancel);
        removed.await.map_err(failed)
    }

    /// The lives of so many disks: all are added, then all are removed. How long each half took.
    pub(super) async fn lives(&self, disks: usize) -> Result<[Duration; 2]> {
        let begun = Instant::now();
        let mut adding =
            stream::iter((0..disks).map(|number| self.add(Disk(number)))).buffer_unordered(AT_ONCE);
        while let Some(added) = adding.next().await {
            added?;
        }
        let attached = begun.elapsed();
        let removing = (0..disks).map(|number| self.remove(Disk(number)));
        let mut removing = stream::iter(removing).buffer_unordered(AT_ONCE);
        while let Some(removed) = removing.next().await {
            removed?;
        }
        Ok([attached, begun.elapsed() - attached])
    }
}

fn failed(failure: Box<Failure>) -> anyhow::Error {
    anyhow!("{failure}")
}
