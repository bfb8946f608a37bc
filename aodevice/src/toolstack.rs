//! The operations of a toolstack on the devices of its guests.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xen_hotplug::Runner;
use xs_client::{Client, DomId, Error, Path};

use crate::machine::{Add, Force, Limits, Remove, WaitFor};
use crate::operation::Job;
use crate::operation::daemon::Processes;
use crate::report::Named;
use crate::{
    Daemons, Device, DeviceId, DomainFacts, Failure, Kind, Operation, PciHost, RunBy, Step, StoreFacts,
    Success, UsbHost, Which,
};

/// How long a turn is waited for.
const TURN: Duration = Duration::from_secs(1);

type Observer = Arc<dyn Fn(&Step) + Send + Sync>;

/// How a device is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addition {
    /// When it is done.
    pub wait_for: WaitFor,
    /// Whether the owner of an operation that is under way on the device is asked to cancel it.
    pub take_over: bool,
}

impl Addition {
    /// Asks the owner of an operation that is under way on the device to cancel it.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }
}

impl From<WaitFor> for Addition {
    fn from(wait_for: WaitFor) -> Self {
        Self { wait_for, ..Self::default() }
    }
}

/// How a device is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Whether it needs the guest's consent.
    pub force: Force,
    /// Whether the owner of an operation that is under way on the device is asked to cancel it.
    pub take_over: bool,
    /// Whether a device that is in use, and that no toolstack has recorded, may be removed.
    pub adopt: bool,
}

impl Removal {
    /// Asks the owner of an operation that is under way on the device to cancel it.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }

    /// Removes also a device that is in use and that no toolstack has recorded.
    #[must_use]
    pub fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }
}

impl From<Force> for Removal {
    fn from(force: Force) -> Self {
        Self { force, ..Self::default() }
    }
}

/// Adds and removes devices on behalf of the domain it runs in.
///
/// Clones share the connection and the script runner.
#[derive(Clone)]
pub struct Toolstack {
    pub(crate) client: Client,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) own: DomId,
    pub(crate) script_dir: PathBuf,
    /// Where libxl keeps its configurations of domains.
    pub(crate) libxl_dir: PathBuf,
    /// Whether devices are entered there, and struck out.
    pub(crate) enters: bool,
    /// Whether driver domains run a daemon that runs hotplug scripts.
    pub(crate) devd: bool,
    /// Where device models have their monitors.
    pub(crate) run_dir: PathBuf,
    /// Where device models write their logs.
    pub(crate) log_dir: PathBuf,
    /// Who tells whether a guest runs.
    pub(crate) facts: Arc<dyn DomainFacts>,
    /// Who starts the daemon of file systems.
    pub(crate) daemons: Arc<dyn Daemons>,
    /// Where the kernel tells of network interfaces, in `class/net`, and of USB devices, in `bus/usb`.
    pub(crate) sys_dir: PathBuf,
    /// Who tells of the host's USB devices; Linux if nobody else is said.
    pub(crate) usb_host: Option<Arc<dyn UsbHost>>,
    /// Who gives PCI functions to guests for the hypervisor; nobody if not said.
    pub(crate) pci_host: Option<Arc<dyn PciHost>>,
    pub(crate) limits: Limits,
    pub(crate) observer: Option<Observer>,
    /// For who makes or removes a device's directories: those of one domain have parents in common, so two at a time
    /// would make each other conflict.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for Toolstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, script_dir, libxl_dir, facts, limits, .. } = self;
        let mut debug = f.debug_struct("Toolstack");
        debug.field("own", own).field("script_dir", script_dir).field("libxl_dir", libxl_dir);
        debug.field("facts", facts).field("limits", limits);
        debug.finish_non_exhaustive()
    }
}

impl Toolstack {
    /// A toolstack on this connection, whose scripts `runner` runs.
    ///
    /// A connection whose transactions are tried again on a store that begins anew
    /// (`xs_client::Retry::across_losses`) makes an operation take that store's word: a removal finds that
    /// nothing is there.
    ///
    /// Its own domid is read from the relative node `domid`; a store without it is taken to be
    /// domain 0's.
    ///
    /// # Errors
    ///
    /// Those of reading that node.
    pub async fn new(client: Client, runner: Arc<dyn Runner>) -> Result<Self, Error> {
        let domid = client.read_opt(&Path::new("domid")?).await?;
        let domid = domid.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        Ok(Self {
            facts: Arc::new(StoreFacts::new(client.clone())),
            daemons: Arc::new(Processes),
            client,
            runner,
            own: domid.unwrap_or(DomId::DOM0),
            script_dir: "/etc/xen/scripts".into(),
            libxl_dir: "/var/lib/xen".into(),
            run_dir: "/var/run/xen".into(),
            log_dir: "/var/log/xen".into(),
            sys_dir: "/sys".into(),
            usb_host: None,
            pci_host: None,
            enters: true,
            devd: true,
            limits: Limits::default(),
            observer: None,
            turn: Arc::default(),
        })
    }

    /// With these time limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With scripts in this directory, `/etc/xen/scripts` if not said.
    #[must_use]
    pub fn with_script_dir(mut self, script_dir: impl Into<PathBuf>) -> Self {
        self.script_dir = script_dir.into();
        self
    }

    /// With libxl's configurations of domains in this directory, `/var/lib/xen` if not said.
    ///
    /// A device of a domain that has one there is entered into it, so that it is still there after `xl` has
    /// rebooted, restored or migrated the domain.
    #[must_use]
    pub fn with_libxl_dir(mut self, libxl_dir: impl Into<PathBuf>) -> Self {
        self.libxl_dir = libxl_dir.into();
        self
    }

    /// With the monitors of device models in this directory, `/var/run/xen` if not said: the sockets `qmp-libxl-3`.
    #[must_use]
    pub fn with_run_dir(mut self, run_dir: impl Into<PathBuf>) -> Self {
        self.run_dir = run_dir.into();
        self
    }

    /// With the logs of device models in this directory, `/var/log/xen` if not said. Why QEMU does not take a
    /// device up is read there.
    #[must_use]
    pub fn with_log_dir(mut self, log_dir: impl Into<PathBuf>) -> Self {
        self.log_dir = log_dir.into();
        self
    }

    /// With someone else to tell whether a guest runs: the store if not said, which does not know whether it is
    /// paused or has shut down. In domain 0 [`Hypercalls`](crate::Hypercalls) know, of the store's own host.
    #[must_use]
    pub fn with_facts(mut self, facts: Arc<dyn DomainFacts>) -> Self {
        self.facts = facts;
        self
    }

    /// With someone else to start xen-9pfsd, which serves file systems of the type `xen_9pfsd`: Xen's own program of
    /// that name, in the directory of such programs, if not said.
    #[must_use]
    pub fn with_daemons(mut self, daemons: Arc<dyn Daemons>) -> Self {
        self.daemons = daemons;
        self
    }

    /// With the kernel's network interfaces in `class/net` of this directory, and its USB devices in `bus/usb`: `/sys` if
    /// not said.
    #[must_use]
    pub fn with_sys_dir(mut self, sys_dir: impl Into<PathBuf>) -> Self {
        self.sys_dir = sys_dir.into();
        self
    }

    /// Does not enter devices into libxl's configurations of domains, nor strike them out: they are gone after a
    /// reboot. Only an entry that an earlier device of the same number has left is struck out before a new one
    /// is made, or libxl would take it for that.
    #[must_use]
    pub fn without_libxl_config(mut self) -> Self {
        self.enters = false;
        self
    }

    /// For driver domains that run no daemon such as `xl devd`: an add is done when the backend has taken the device up
    /// there, and a removal when it has closed. Whether a hotplug script runs there, and undoes its work, is not
    /// waited for.
    #[must_use]
    pub fn without_devd(mut self) -> Self {
        self.devd = false;
        self
    }

    /// Who runs the hotplug scripts of a device whose backend is in this domain.
    pub(crate) fn run_by(&self, be: DomId) -> RunBy {
        match be == self.own {
            true => RunBy::Toolstack,
            false if self.devd => RunBy::Daemon,
            false => RunBy::Nobody,
        }
    }

    /// With someone to be told of every step. It is called from within operations: it must not
    /// block.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(&Step) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Its own domain.
    pub fn own(&self) -> DomId {
        self.own
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Adds a device to a guest.
    ///
    /// Done when the backend is ready and the scripts have run, or when the guest has connected:
    /// see [`WaitFor`]. Where libxl keeps a configuration of the guest, the device is entered into it then:
    /// see [`libxl`](crate::libxl). Whatever an operation that died left in its place is removed first; an
    /// operation that is under way is waited for, up to [`Limits::owner`].
    ///
    /// # Errors
    ///
    /// On failure, and when `cancel` is cancelled, everything is rolled back before this returns,
    /// within [`Limits::close`] and the scripts' limits. What could not be undone is among the
    /// failure's warnings.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the operation stops where it is: a script is killed, and what was
    /// written stays with its operation record, from which any later add or removal goes on. Prefer
    /// to cancel.
    pub async fn add(
        &self,
        fe: DomId,
        device: &Device,
        addition: impl Into<Addition>,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let device = Arc::new(device.settled());
        let named = Named::of_device(fe, &device);
        let machine = Add::new(fe, device, addition.into(), self.limits);
        // Boxed, since it is large and several may run in one task.
        Box::pin(Job::new(self, Operation::Attach, named).drive(machine, cancel)).await
    }

    /// Removes a device from a guest.
    ///
    /// Where its backend is, and which script is run, is taken from the toolstack's own record.
    /// See [`Force`] for what is done if the guest does not let go. One that will never run again is not waited
    /// for ([`Condition::is_over`](crate::Condition::is_over)). An operation that is under way on
    /// the device is waited for, up to [`Limits::owner`]; one that died is gone on with. Where libxl keeps a
    /// configuration of the guest, the device is struck out of it: see [`libxl`](crate::libxl). The devices of the host
    /// in the ports of a USB controller are taken back first.
    ///
    /// Removing with the guest's consent does not mean that nothing in the guest used the device:
    /// Linux's blkfront was seen to let go of a disk that was held open.
    ///
    /// # Errors
    ///
    /// A removal that fails or is cancelled after the device was told to close leaves it closing,
    /// with its operation record; a later removal goes on from there.
    ///
    /// # Cancel safety
    ///
    /// As if it had been cancelled, but a script is killed without having been asked to end.
    pub async fn remove(
        &self,
        fe: DomId,
        (kind, devid): (Kind, u32),
        removal: impl Into<Removal>,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let which = Which { fe, kind, devid };
        self.empty_ports(which, cancel).await?;
        let job = Job::new(self, Operation::Detach, Named::of_id(which));
        let machine = Remove::new(which, removal.into(), self.limits);
        Box::pin(job.drive(machine, cancel)).await
    }

    /// The same of a device that was `found` a moment ago, beside the end of the guest's device model; `survives` is
    /// cancelled if that does not end.
    pub(crate) async fn remove_of_domain(
        &self,
        (which, found): (Which, Option<DeviceId>),
        removal: Removal,
        survives: CancellationToken,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        self.empty_ports(which, cancel).await?;
        let job = Job::new(self, Operation::Detach, Named::of_id(which)).of_domain(found, survives);
        let machine = Remove::new(which, removal, self.limits);
        Box::pin(job.drive(machine, cancel)).await
    }

    /// Takes the devices of the host from a USB controller that is to be removed.
    async fn empty_ports(&self, which: Which, cancel: &CancellationToken) -> Result<(), Box<Failure>> {
        match which.kind {
            Kind::Vusb => Box::pin(self.empty_usb_controller(which.fe, which.devid, cancel)).await,
            _ => Ok(()),
        }
    }

    /// The turn to make or to remove a device's directories. It saves conflicts, and nothing rests on it: whoever has it
    /// while the store does not answer holds nobody up for long.
    pub(crate) async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        timeout(TURN, self.turn.lock()).await.ok()
    }
}
