//! The hotplug scripts of a driver domain, and what they have made there.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xen_aodevice::sim;
use xen_hotplug::{Action, Ending, Kind, Limits, Output, Permit, Report, Request, Runner};
use xs_client::{Client, Path};

use super::schedule::{Schedule, Script};

/// A device: whether it is an interface, its guest, and its number.
pub(super) type Device = (bool, u32, u32);

/// The scripts of one driver domain.
#[derive(Debug)]
pub(super) struct Scripts {
    schedule: Arc<Schedule>,
    client: Client,
    ledger: Mutex<Ledger>,
}

/// What has been done.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What is made and not given back.
    pub(super) held: BTreeSet<Device>,
    /// How often each was set up.
    adds: BTreeMap<Device, u64>,
    running: BTreeSet<Device>,
    pub(super) runs: usize,
    pub(super) killed: usize,
    pub(super) violations: Vec<String>,
}

/// A script that runs.
struct Running<'a> {
    scripts: &'a Scripts,
    device: Device,
    has_ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut ledger = self.scripts.ledger();
        ledger.running.remove(&self.device);
        ledger.killed += usize::from(!self.has_ended);
    }
}

impl Scripts {
    pub(super) fn new(schedule: Arc<Schedule>, client: Client) -> Self {
        Self { schedule, client, ledger: Mutex::default() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn play(&self, request: &Request, device: Device) -> Ending {
        let is_add = request.action == Action::Add;
        let nth = {
            let mut ledger = self.ledger();
            let adds = ledger.adds.entry(device).or_default();
            *adds += u64::from(is_add);
            *adds
        };
        let (script, takes) = self.schedule.script((device.1, device.2), nth);
        let (script, takes) = match (is_add, script) {
            (false, _) => (Script::Works, takes / 2),
            // Nothing else tells of an interface.
            (true, Script::FindsNothing) if device.0 => (Script::Works, takes),
            (true, script) => (script, takes),
        };
        sleep(takes / 2).await;
        let finds = script != Script::FindsNothing;
        {
            let mut ledger = self.ledger();
            if !is_add {
                ledger.held.remove(&device);
            } else if finds && !ledger.held.insert(device) {
                ledger.violations.push(format!("what {request} had made is made again and lost"));
            }
        }
        let says = async |key: &str, value: &'static str| {
            let node = Path::new(format!("{}/{key}", request.directory()));
            // The directory may be gone, and so may the store.
            _ = self.client.write(&node.expect("the path of a device"), value).await;
        };
        match script {
            Script::Works => {}
            Script::Hangs => std::future::pending().await,
            Script::Fails | Script::FailsSilently => {
                // What it has made itself, a script gives back.
                self.ledger().held.remove(&device);
                sleep(takes / 2).await;
                if script == Script::Fails {
                    says("hotplug-error", "no such image").await;
                    says("hotplug-status", "error").await;
                }
                return Ending::Exited(1);
            }
            Script::FindsNothing => {
                sleep(takes / 2).await;
                says("hotplug-status", "connected").await;
                return Ending::Exited(0);
            }
        }
        let stock = sim::Scripts::new(self.client.clone(), takes / 2);
        stock.run(request, &Limits::default(), &CancellationToken::new()).await.ending
    }
}

impl Runner for Scripts {
    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            if !permit.await {
                return Report::new(Ending::Withdrawn, Output::default(), Duration::ZERO);
            }
            let device = (request.kind == Kind::Vif, request.fe, request.devid);
            {
                let mut ledger = self.ledger();
                ledger.runs += 1;
                if !ledger.running.insert(device) {
                    ledger.violations.push(format!("two scripts of one device at once: {request}"));
                }
            }
            let mut running = Running { scripts: self, device, has_ended: false };
            let ending = tokio::select! {
                biased;
                () = cancel.cancelled() => Ending::Aborted,
                ending = self.play(request, device) => ending,
                () = sleep(limits.deadline) => Ending::TimedOut,
            };
            running.has_ended = matches!(ending, Ending::Exited(_));
            Report::new(ending, Output::default(), Duration::ZERO)
        })
    }
}
