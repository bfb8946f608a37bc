//! The store that a command works on, and who runs scripts there.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::path::{self, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use xen_aodevice::sim::{self, Drivers};
use xen_aodevice::{Hypercalls, Limits, NativeRunner, Toolstack};
use xen_hotplug::{Runner, ScriptRunner};
use xs_client::{Client, Config, DomId, Error, default_socket};
use xs_store::Store;

use crate::args::Common;
use crate::problem::{Code, Problem, unless_cancelled};

/// The longest path of a Unix socket, in bytes.
pub(crate) const LONGEST_SOCKET: usize = 107;

/// Where the store of a host's own domains listens.
const OWN_SOCKET: &str = "/run/xenstored/socket";

/// Which store.
#[derive(Clone, Debug, Default)]
pub(crate) enum StoreChoice {
    /// The machine's own.
    #[default]
    Default,
    /// The one at this socket.
    Socket(PathBuf),
    /// One in this process, with a simulated guest.
    Embedded,
}

impl FromStr for StoreChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "embedded" => Self::Embedded,
            "" => Self::Default,
            path => Self::Socket(path.into()),
        })
    }
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Socket(path) => path.display().fmt(f),
            Self::Embedded => f.write_str("embedded"),
        }
    }
}

/// A connection to a store, and what belongs to it.
pub(crate) struct World {
    pub(crate) client: Client,
    runner: Arc<dyn Runner>,
    /// Tells of the host's domains; or why the store does.
    hypercalls: Result<Arc<Hypercalls>, String>,
    /// Whether driver domains run a daemon.
    devd: bool,
    /// The simulated peers of an embedded store; they stop when dropped.
    _drivers: Vec<Drivers>,
}

/// The hypervisor's word on the domains of the store at this socket, or why that is not to be had: the domains of a
/// store that is not the host's own are not the hypervisor's.
fn hypercalls(socket: &path::Path) -> Result<Arc<Hypercalls>, String> {
    let own = fs::canonicalize(OWN_SOCKET).ok();
    if own.is_none() || own != fs::canonicalize(socket).ok() {
        return Err(format!("the store is not the one at {OWN_SOCKET}"));
    }
    Hypercalls::open().map(Arc::new).map_err(|error| format!("there are no hypercalls ({error})"))
}

/// On a slow host many commands at once make each other's transactions conflict for longer than a library
/// should wait by default.
fn config() -> Config {
    let mut config = Config::default();
    config.retry.within = Duration::from_secs(60);
    // Of a store that begins anew, empty, nothing is to be learned about devices.
    config.retry.across_losses = false;
    config
}

/// The guest that an embedded store has.
pub(crate) const GUEST: DomId = DomId(1);

impl World {
    pub(crate) async fn open(common: &Common) -> Result<Self, Problem> {
        let socket = match &common.store {
            StoreChoice::Embedded => {
                return Ok(Self { devd: !common.no_devd, ..Self::embedded(Duration::ZERO).await? });
            }
            StoreChoice::Socket(path) => path.clone(),
            StoreChoice::Default => default_socket(),
        };
        let tried = "cannot reach the store";
        if socket.as_os_str().len() > LONGEST_SOCKET {
            let observed = format!("the path of its socket has more than {LONGEST_SOCKET} bytes");
            return Err(Problem::new(
                Code::Usage,
                tried,
                observed,
                "name it by a shorter path, such as a link",
            ));
        }
        let client = unless_cancelled(tried, Client::connect_unix(&socket, config()))
            .await?
            .map_err(|error| Problem::store(tried, &error))?;
        let hypercalls = hypercalls(&socket);
        // The scripts' own xenstore programs are to talk to the same store, wherever they are run.
        let scripts = ScriptRunner::new().env("XENSTORED_PATH", path::absolute(&socket).unwrap_or(socket));
        let runner = NativeRunner::new(client.clone(), scripts, common.hotplug);
        Ok(Self { client, runner: Arc::new(runner), hypercalls, devd: !common.no_devd, _drivers: Vec::new() })
    }

    /// A store of its own with domain 0 and one guest, both with simulated drivers.
    pub(crate) async fn embedded(latency: Duration) -> Result<Self, Problem> {
        let problem = |error: Error| Problem::store("cannot set up the embedded store", &error);
        let store = Store::new();
        store.introduce(GUEST);
        let connect = |domid| Client::over(store.connect(domid), Config::default());
        let client = connect(DomId::DOM0);
        sim::create_domain0(&client).await.map_err(problem)?;
        sim::create_domain(&client, GUEST, "guest").await.map_err(problem)?;
        let backends = Drivers::backends(connect(DomId::DOM0), DomId::DOM0, latency).map_err(problem)?;
        let frontends = Drivers::frontends(connect(GUEST), GUEST, latency).map_err(problem)?;
        let runner = Arc::new(sim::Scripts::new(connect(DomId::DOM0), latency));
        let hypercalls = Err("its domains are simulated".to_owned());
        Ok(Self { client, runner, hypercalls, devd: true, _drivers: vec![backends, frontends] })
    }

    pub(crate) async fn toolstack(&self, limits: Limits) -> Result<Toolstack, Problem> {
        let tried = "cannot find out which domain this is";
        let toolstack = unless_cancelled(tried, Toolstack::new(self.client.clone(), self.runner.clone()));
        let toolstack = toolstack.await?.map_err(|error| Problem::store(tried, &error))?;
        let toolstack = toolstack.with_limits(limits);
        let toolstack = if self.devd { toolstack } else { toolstack.without_devd() };
        Ok(match &self.hypercalls {
            Ok(hypercalls) => toolstack.with_facts(hypercalls.clone()),
            Err(_) => toolstack,
        })
    }

    /// Who tells whether a guest runs, in words.
    pub(crate) fn facts(&self) -> String {
        match &self.hypercalls {
            Ok(hypercalls) => format!(
                "the hypervisor tells of domains (interface version {:#x})",
                hypercalls.interface_version()
            ),
            Err(reason) => format!("the store tells of domains, and not whether they are paused: {reason}"),
        }
    }
}
