//! What a driver domain does for a device: it runs the hotplug scripts or starts a device model, and removes the backend's directory; and that it
//! is gone.
//!
//! The backend's directory is its own, so nothing there is believed beyond this one device: neither which script that
//! has, nor which guest. Its texts are shown escaped and shortened.
//!
//! Evidence that a script has run is its report (`hotplug-status`), and what the backend needs of it: `physical-device` for a
//! disk. One without the other is given some time: the stock `block` reports `connected` also of an image that is not there,
//! libxl's daemon reports nothing that the script did not, and in which order these nodes are written is not settled. Our
//! own daemon reports how each script ended, so its report is waited for: what a script has written before it ended is
//! not its end. netback gets to 4 only by a report, which it then takes away.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_devstate::{Ended, Goal, Outcome, StateValue, XenbusState, wait_until};
use xs_client::{Client, Path, Watch};

use super::observe::shown;
use super::said::is_failure;
use super::{Target, store};
use crate::devd::MARKER;
use crate::kind::Recorded;
use crate::machine::{Node, Reached};
use crate::{Cause, Condition, DriverDomainFault, Kind, Toolstack};

/// How long a report may be without what it reports, or the other way round.
const GRACE: Duration = Duration::from_secs(2);

/// How often a domain is looked at of whose end the store does not tell.
const LOOK: Duration = Duration::from_secs(1);

/// What stands in the backend's directory of a script's run.
#[derive(Clone, Debug, Default)]
struct Seen {
    state: Option<StateValue>,
    status: Option<String>,
    error: Option<String>,
    /// What the script should have written and did not.
    missing: Option<&'static str>,
    /// Whether the daemon there is one that reports how each script ended.
    reports: bool,
}

/// What that means.
#[derive(Debug)]
enum Verdict {
    /// Nothing yet.
    Wait,
    /// This, if nothing else comes for so long; at the end of all waiting at the latest.
    Presumably(Result<(), DriverDomainFault>, Duration),
    /// This.
    Certainly(Result<(), Cause>),
}

impl Seen {
    async fn read(client: &Client, target: &Target) -> Result<Self, xs_client::Error> {
        let backend = &target.paths().backend;
        let info = target.id().kind.info();
        let made: Vec<&str> =
            info.made.iter().copied().chain(["hotplug-status", "physical-device-path"]).collect();
        let mut nodes = vec![backend.join("state")?, backend.join("hotplug-error")?, backend.join(MARKER)?];
        for key in &made {
            nodes.push(backend.join(key)?);
        }
        let mut seen = client.read_many(&nodes).await?.into_iter();
        let state = seen.next().flatten().as_deref().map(StateValue::parse);
        let error = seen.next().flatten().filter(|error| !error.is_empty()).map(|error| shown(&error));
        let reports = seen.next().flatten().is_some();
        let written = made.iter().zip(seen);
        let written = written.filter_map(|(key, value)| Some(((*key).to_owned(), store::text(value)?)));
        let mut keys: Recorded = target.recorded().clone();
        keys.remove("hotplug-status");
        keys.extend(written);
        let status = keys.get("hotplug-status").filter(|status| !status.is_empty()).cloned();
        let missing = (info.unreported)(&keys).map(|(missing, _)| missing);
        Ok(Self { state, status, error, missing, reports })
    }

    fn verdict(&self, target: &Target) -> Verdict {
        let be = target.id().be;
        if let Some(status) = self.status.as_ref().filter(|status| is_failure(status)) {
            let fault =
                DriverDomainFault::Script { status: shown(status.as_bytes()), error: self.error.clone() };
            return Verdict::Certainly(Err(Cause::DriverDomain { be, fault }));
        }
        let (node, goal) = (Node::BackendState, Goal::BACKEND_READY);
        let decided = goal.decide(self.state.as_ref());
        let is_connected = matches!(decided, Some(Outcome::Reached(XenbusState::Connected)));
        if is_connected && target.id().kind == Kind::Vif {
            return Verdict::Certainly(Ok(()));
        }
        match decided {
            Some(Outcome::Vanished) => return Verdict::Certainly(Err(Cause::Vanished(node))),
            Some(Outcome::Failed(found)) => {
                let found = found.to_string();
                return Verdict::Certainly(Err(Cause::Refused { node, goal: goal.to_string(), found }));
            }
            _ => {}
        }
        let works = is_connected || self.missing.is_none();
        match (self.status.as_deref(), self.missing) {
            (Some("connected"), _) if works => Verdict::Certainly(Ok(())),
            (Some("connected"), Some(missing)) => {
                Verdict::Presumably(Err(DriverDomainFault::NotReported { missing }), GRACE)
            }
            _ if works => Verdict::Presumably(Ok(()), if self.reports { Duration::MAX } else { GRACE }),
            _ => Verdict::Wait,
        }
    }
}

/// Waits until the driver domain has run the scripts of an add.
pub(super) async fn scripted(client: &Client, target: &Target, limit: Duration) -> Result<Reached, Cause> {
    let be = target.id().be;
    let fault = |fault| Cause::DriverDomain { be, fault };
    let mut watch = client.watch(&target.paths().backend).await?;
    let mut deadline = std::pin::pin!(xen_devstate::deadline(limit));
    let (mut since, mut is_over) = (None, false);
    loop {
        let presumed = match Seen::read(client, target).await?.verdict(target) {
            Verdict::Certainly(decided) => return decided.map(|()| Reached::Value),
            Verdict::Presumably(presumed, grace) => Some((presumed, grace)),
            Verdict::Wait => None,
        };
        since = presumed.as_ref().map(|_| since.unwrap_or_else(Instant::now));
        let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = presumed.as_ref().map(|(_, grace)| grace.saturating_sub(waited));
        if is_over || left.is_some_and(|left| left.is_zero()) {
            let presumed =
                presumed.map_or(Err(DriverDomainFault::Silent { limit }), |(presumed, _)| presumed);
            return presumed.map(|()| Reached::Value).map_err(fault);
        }
        let grace = xen_devstate::deadline(left.unwrap_or(Duration::MAX));
        // The ends come first: who writes there all the time is not to put them off.
        tokio::select! {
            biased;
            () = &mut deadline => is_over = true,
            () = grace => {}
            changed = watch.changed() => drop(changed?),
        }
    }
}

/// Whether the driver domain has said that it will not serve a device.
pub(super) async fn is_refused(client: &Client, target: &Target) -> Option<Cause> {
    let seen = Seen::read(client, target).await.ok()?;
    match seen.verdict(target) {
        Verdict::Certainly(Err(cause @ Cause::DriverDomain { .. })) => Some(cause),
        _ => None,
    }
}

/// Resolves when it says so. Its daemon need not wait for the backend's state with that: a device of QEMU's has none
/// until a QEMU runs.
pub(super) async fn refused(client: &Client, target: &Target) -> Cause {
    let watched = async { client.watch(&target.paths().backend.join("hotplug-status")?).await };
    let Ok(mut watch) = watched.await else { return std::future::pending().await };
    while watch.changed().await.is_ok() {
        if let Some(cause) = is_refused(client, target).await {
            return cause;
        }
    }
    std::future::pending().await
}

/// Resolves when a device model of the driver domain's has run for so long: it will not take the device up any more. libxl's
/// daemon does not say so.
pub(super) async fn idles(client: &Client, target: &Target, limit: Duration) {
    if !target.is_of_model_elsewhere() {
        return std::future::pending().await;
    }
    let id = target.id();
    let runs = |value: Option<&[u8]>| (value == Some(b"running")).then_some(());
    let Ok(state) = Path::new(format!("/local/domain/{}/device-model/{}/state", id.be, id.fe)) else {
        return std::future::pending().await;
    };
    match wait_until(client, &state, Duration::MAX, &CancellationToken::new(), runs).await {
        Ended::Decided(()) => sleep(limit).await,
        _ => std::future::pending().await,
    }
}

/// Waits until the driver domain has removed the backend's directory.
pub(super) async fn removed(client: &Client, target: &Target, limit: Duration) -> Result<Reached, Cause> {
    let gone = |value: Option<&[u8]>| value.is_none().then_some(());
    match wait_until(client, &target.paths().backend, limit, &CancellationToken::new(), gone).await {
        Ended::Decided(()) => Ok(Reached::Gone),
        Ended::Io(error) => Err(Cause::Store(error)),
        Ended::TimedOut => {
            let fault = DriverDomainFault::NotRemoved { limit };
            Err(Cause::DriverDomain { be: target.id().be, fault })
        }
        _ => Err(Cause::Aborted),
    }
}

/// Why nothing more is to be expected of the driver domain that has a device's backend, if that is so. `xl destroy`
/// removes its home before the domain itself.
pub(super) async fn is_gone(toolstack: &Toolstack, target: &Target) -> Option<Cause> {
    let be = target.id().be;
    if !target.is_remote() {
        return None;
    }
    let home = async { toolstack.client.read_opt(&Path::new(format!("/local/domain/{be}"))?).await };
    let (facts, home) = tokio::join!(toolstack.facts.look(be), home);
    let is_over = facts.is_ok_and(Condition::is_over) || matches!(home, Ok(None));
    is_over.then_some(Cause::DriverDomain { be, fault: DriverDomainFault::Gone })
}

/// Resolves when the driver domain that has a device's backend is gone. Where its number has been given to another domain
/// meanwhile, the backend's directory has gone with it, and that is seen by who waits for something there.
pub(super) async fn gone(toolstack: &Toolstack, target: &Target) -> Cause {
    if !target.is_remote() {
        return std::future::pending().await;
    }
    let watched = async { toolstack.client.watch(&Path::new("@releaseDomain")?).await };
    let mut watch: Option<Watch> = watched.await.ok();
    loop {
        if let Some(cause) = is_gone(toolstack, target).await {
            return cause;
        }
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let is_watched = tokio::select! {
            changed = changed => changed,
            () = sleep(LOOK) => true,
        };
        if !is_watched {
            watch = None;
        }
    }
}
