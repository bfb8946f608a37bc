//! The daemon as a program has it: what can be chosen, and why there can be none.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Limits, Runner};
use xs_client::{Client, DomId, Error, ErrorCode, Path};

use super::aside::Waiting;
use super::place::NOTES;
use super::qemu::{QemuProgram, Qemus};
use super::turns::Turns;
use super::worker::Shared;
use super::{Event, Holder};
use crate::operation::text;

/// What can be chosen for a [`Daemon`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How many devices are worked on at one time: 16 by default.
    pub at_once: usize,
    /// The limits of each script.
    pub scripts: Limits,
    /// How long to wait for the interface that the kernel makes for a `vif`: 10 s by default.
    pub interface: Duration,
    /// Where the kernel tells of network interfaces.
    pub interfaces: PathBuf,
    /// How long looking at an image may take: 5 s by default.
    pub file: Duration,
    /// Whether the devices that domain 0 serves are served too, whose own toolstack does so: not by default.
    pub serve_domain0: bool,
    /// What starts QEMU for guests with disks or file systems that it serves: by default the program of this system.
    pub qemus: Arc<dyn Qemus>,
    /// How long a QEMU may take to start: 60 s by default.
    pub qemu_start: Duration,
    /// How long one that runs may take to take up a device: 10 s by default.
    pub qemu_device: Duration,
    /// How long one may take to end, before it is killed: 10 s by default.
    pub qemu_end: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            at_once: 16,
            scripts: Limits::default(),
            interface: Duration::from_secs(10),
            interfaces: "/sys/class/net".into(),
            file: Duration::from_secs(5),
            serve_domain0: false,
            qemus: Arc::new(QemuProgram::default()),
            qemu_start: Duration::from_secs(60),
            qemu_device: Duration::from_secs(10),
            qemu_end: Duration::from_secs(10),
        }
    }
}

/// Why there can be no daemon, or none any more.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum DaemonError {
    /// This is domain 0, whose toolstack runs the scripts itself.
    #[error("this is domain 0, where the toolstack itself runs the scripts of the devices that it attaches")]
    Domain0,
    /// The store does not say which domain this is.
    #[error("the store does not say which domain this is: its node domid holds {0:?}")]
    NoDomid(Option<String>),
    /// This domain may not write its notes.
    #[error(
        "this domain may not write below its node libxl, as a domain that was made with driver_domain=1 may"
    )]
    NoNotes,
    /// Another process serves this domain.
    #[error("{0} serves them")]
    RunsAlready(Holder),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The domain whose connection this is.
pub(super) async fn own_domain(client: &Client) -> Result<DomId, DaemonError> {
    let domid = text(client.read_opt(&Path::new("domid").map_err(Error::from)?).await?);
    let own = domid.as_ref().and_then(|domid| domid.trim().parse().ok()).map(DomId);
    own.ok_or(DaemonError::NoDomid(domid))
}

/// Serves the devices of a driver domain.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use xen_aodevice::devd::{Daemon, Settings};
/// use xen_hotplug::ScriptRunner;
/// use tokio_util::sync::CancellationToken;
/// use xs_client::Client;
///
/// let client = Client::connect().await?;
/// let scripts = Arc::new(ScriptRunner::new());
/// let daemon = Daemon::new(client, scripts, Settings::default()).await?;
/// let stop = CancellationToken::new();
/// daemon.run(stop, |event| println!("{event}"), |devices| println!("{devices} devices")).await?;
/// # Ok(())
/// # }
/// ```
pub struct Daemon {
    client: Client,
    runner: Arc<dyn Runner>,
    own: DomId,
    settings: Settings,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon")
            .field("own", &self.own)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon for the domain whose connection this is. Nothing is done yet. That there is no other in this domain is for
    /// a [`Claim`](super::Claim) to see to.
    ///
    /// # Errors
    ///
    /// If this is domain 0 and that was not chosen, if this domain may not write its notes, or if the store fails.
    pub async fn new(
        client: Client,
        runner: Arc<dyn Runner>,
        settings: Settings,
    ) -> Result<Self, DaemonError> {
        let own = own_domain(&client).await?;
        if own == DomId::DOM0 && !settings.serve_domain0 {
            return Err(DaemonError::Domain0);
        }
        match client.mkdir(&Path::new(NOTES).map_err(Error::from)?).await {
            Err(error) if error.code() == Some(&ErrorCode::EACCES) => Err(DaemonError::NoNotes),
            made => Ok(made.map(|()| Self { client, runner, own, settings })?),
        }
    }

    /// The domain that is served.
    pub fn own(&self) -> DomId {
        self.own
    }

    /// Serves until `stop` is cancelled: then no script begins any more, and those that run go on to their ends. All
    /// devices stay as they are.
    ///
    /// `ready` is called once, with how many devices there are, when those that are there are taken note of; scripts of
    /// some may be running. `tell` is told of whatever happens.
    ///
    /// # Errors
    ///
    /// If the connection to the store is gone for good. One that is to serve for ever has
    /// [`Reconnect::within`](xs_client::Reconnect::within) at [`Duration::MAX`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, running scripts are killed; another daemon goes on from what is noted.
    pub async fn run(
        self,
        stop: CancellationToken,
        tell: impl Fn(&Event) + Send + Sync + 'static,
        ready: impl FnOnce(usize) + Send,
    ) -> Result<(), DaemonError> {
        let Self { client, runner, own, settings } = self;
        let shared = Arc::new(Shared {
            client,
            runner,
            own,
            settings,
            tell: Box::new(tell),
            stop: stop.clone(),
            searching: tokio::sync::Mutex::default(),
            waiting: Waiting::default(),
        });
        let mut turns = Turns::new(shared);
        let served = turns.serve(&stop, ready).await;
        turns.finish().await;
        served
    }
}
