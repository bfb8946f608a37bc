//! Domain 0's store, a driver domain with its kernel and its daemon, and guests; all of which may go and come.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lab_proxy::Proxy;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use xen_aodevice::devd::{Daemon, DaemonError, Settings};
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Access, Client, Config, Connect, DomId, Error, Path, Permissions, Reconnect};
use xs_store::Store;

use super::schedule::{DEVICES, GUESTS, Schedule};
use super::scripts::Scripts;

/// Longer than anything may take.
pub(super) const LONG: Duration = Duration::from_secs(1000);

/// A guard kills the script of a daemon that was killed, and keeps the next one of the device waiting meanwhile.
const GUARD: Duration = Duration::from_millis(10);

/// How long a daemon lives at most that is to be killed between two requests.
const SOON: Duration = Duration::from_secs(2);

/// Domains get no higher numbers.
const MOST_DOMAINS: u32 = 24;

/// The network interfaces that driver domains find, the same for all that run at a time: they are only looked at, and
/// to make directories costs as much as a course.
pub(super) fn interfaces() -> Arc<TempDir> {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut shared = locked(&SHARED);
    shared.upgrade().unwrap_or_else(|| {
        let made = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        for domid in 1..MOST_DOMAINS {
            for devid in 0..DEVICES {
                let interface = made.path().join(format!("vif{domid}.{devid}"));
                fs::create_dir(interface).expect("a directory in a temporary one");
            }
        }
        *shared = Arc::downgrade(&made);
        made
    })
}

/// What a course comes to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    /// What happened, with its time.
    pub(super) trace: Vec<String>,
    /// How often what was done ended how.
    pub(super) ended: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) schedule: Arc<Schedule>,
    pub(super) store: Store,
    pub(super) dom0: Client,
    /// Where libxl's configuration would be.
    pub(super) files: TempDir,
    interfaces: Arc<TempDir>,
    begun: Instant,
    domains: Mutex<Domains>,
    /// Held while the daemon is started or ended.
    service: tokio::sync::Mutex<()>,
    outcome: Mutex<Outcome>,
}

#[derive(Debug)]
struct Domains {
    next: u32,
    driver: Option<DriverDomain>,
    guests: [Option<Guest>; GUESTS],
}

#[derive(Debug)]
pub(super) struct DriverDomain {
    pub(super) domid: DomId,
    pub(super) scripts: Arc<Scripts>,
    kernel: Option<Drivers>,
    devd: Option<Devd>,
}

#[derive(Debug)]
struct Guest {
    domid: DomId,
    kernel: Option<Drivers>,
}

/// A daemon that runs.
#[derive(Debug)]
struct Devd {
    way: Arc<Way>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), DaemonError>>,
}

/// The daemon's way to the store.
#[derive(Debug, Default)]
struct Way {
    proxy: Mutex<Option<Proxy>>,
    /// A connection that ends is the last.
    is_last: AtomicBool,
}

struct Dial {
    store: Store,
    domid: DomId,
    way: Arc<Way>,
}

impl Connect for Dial {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "the store of the course".to_owned()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        if self.way.is_last.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let (stream, proxy) = Proxy::over(self.store.connect(self.domid));
        *locked(&self.way.proxy) = Some(proxy);
        Ok(stream)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path that is known to be one.
pub(super) fn path(text: impl AsRef<str>) -> Path {
    Path::new(text.as_ref()).expect("a path")
}

impl World {
    pub(super) async fn new(schedule: &Schedule) -> Result<Arc<Self>, Error> {
        let store = Store::new();
        let dom0 = Client::over(store.connect(DomId::DOM0), Config::default());
        sim::create_domain0(&dom0).await?;
        let world = Arc::new(Self {
            schedule: Arc::new(schedule.clone()),
            store,
            dom0,
            files: tempfile::tempdir().expect("a temporary directory"),
            interfaces: interfaces(),
            begun: Instant::now(),
            domains: Mutex::new(Domains { next: 1, driver: None, guests: [const { None }; GUESTS] }),
            service: tokio::sync::Mutex::default(),
            outcome: Mutex::default(),
        });
        world.boot_driver_domain().await?;
        for guest in 0..GUESTS {
            world.boot_guest(guest).await?;
        }
        Ok(world)
    }

    pub(super) fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        self.tell(&format!("VIOLATION {text}"));
        locked(&self.outcome).violations.push(text);
    }

    /// Something happened.
    pub(super) fn tell(&self, text: &str) {
        let line = format!("{:>8} ms: {text}", self.begun.elapsed().as_millis());
        locked(&self.outcome).trace.push(line);
    }

    /// Something ended in this way.
    pub(super) fn count(&self, what: String) {
        *locked(&self.outcome).ended.entry(what).or_default() += 1;
    }

    pub(super) fn outcome(&self) -> Outcome {
        mem::take(&mut locked(&self.outcome))
    }

    /// Since the beginning.
    pub(super) fn at(&self, millis: u64) -> Instant {
        self.begun + Duration::from_millis(millis)
    }

    fn connect(&self, domid: DomId) -> Client {
        Client::over(self.store.connect(domid), Config::default())
    }

    fn latency(&self) -> Duration {
        Duration::from_millis(self.schedule.latency)
    }

    fn new_domain(&self) -> DomId {
        let mut domains = locked(&self.domains);
        let domid = DomId(domains.next);
        domains.next += 1;
        self.store.introduce(domid);
        domid
    }

    /// The driver domain's number and its scripts, if it lives.
    pub(super) fn driver(&self) -> Option<(DomId, Arc<Scripts>)> {
        locked(&self.domains).driver.as_ref().map(|driver| (driver.domid, driver.scripts.clone()))
    }

    /// A guest's number, if it lives.
    pub(super) fn guest(&self, guest: usize) -> Option<DomId> {
        locked(&self.domains).guests[guest].as_ref().map(|guest| guest.domid)
    }

    /// A driver domain named `dd`, with all that runs there.
    pub(super) async fn boot_driver_domain(&self) -> Result<(), Error> {
        let domid = self.new_domain();
        sim::create_domain(&self.dom0, domid, "dd").await?;
        for node in ["libxl", "device-model"] {
            let node = path(format!("/local/domain/{domid}/{node}"));
            self.dom0.mkdir(&node).await?;
            self.dom0.set_perms(&node, Permissions::owned_by(domid, Access::None)).await?;
        }
        let scripts = Arc::new(Scripts::new(self.schedule.clone(), self.connect(domid)));
        let driver = DriverDomain { domid, scripts, kernel: None, devd: None };
        locked(&self.domains).driver = Some(driver);
        self.start_kernel();
        self.start_devd().await;
        Ok(())
    }

    pub(super) async fn boot_guest(&self, guest: usize) -> Result<(), Error> {
        let domid = self.new_domain();
        sim::create_domain(&self.dom0, domid, &format!("g{guest}")).await?;
        locked(&self.domains).guests[guest] = Some(Guest { domid, kernel: None });
        self.start_guest(guest);
        Ok(())
    }

    /// As `xl destroy` does.
    pub(super) async fn destroy_driver_domain(&self) {
        let Some(driver) = locked(&self.domains).driver.take() else { return };
        if let Some(devd) = driver.devd {
            devd.kill().await;
        }
        drop(driver.kernel);
        self.remove_domain(driver.domid).await;
        self.audit_scripts(&driver.scripts);
    }

    /// Kills a guest; its nodes stay. Returns its number.
    pub(super) fn kill_guest(&self, guest: usize) -> Option<DomId> {
        let Guest { domid, kernel } = locked(&self.domains).guests[guest].take()?;
        drop(kernel);
        self.store.release(domid);
        Some(domid)
    }

    /// Removes the nodes of a domain that has gone.
    pub(super) async fn remove_domain(&self, domid: DomId) {
        self.store.release(domid);
        for home in [format!("/local/domain/{domid}"), format!("/libxl/{domid}")] {
            if let Err(error) = self.dom0.rm(&path(&home)).await {
                self.violation(format!("{home} cannot be removed: {error}"));
            }
        }
    }

    pub(super) fn start_kernel(&self) {
        if let Some(driver) = &mut locked(&self.domains).driver
            && driver.kernel.is_none()
        {
            let kernel = Drivers::backends(self.connect(driver.domid), driver.domid, self.latency());
            driver.kernel = Some(kernel.expect("a path"));
        }
    }

    pub(super) fn stop_kernel(&self) {
        if let Some(driver) = &mut locked(&self.domains).driver {
            driver.kernel = None;
        }
    }

    pub(super) fn start_guest(&self, guest: usize) {
        if let Some(guest) = &mut locked(&self.domains).guests[guest]
            && guest.kernel.is_none()
        {
            let kernel = Drivers::frontends(self.connect(guest.domid), guest.domid, self.latency());
            guest.kernel = Some(kernel.expect("a path"));
        }
    }

    pub(super) fn stop_guest(&self, guest: usize) {
        if let Some(guest) = &mut locked(&self.domains).guests[guest] {
            guest.kernel = None;
        }
    }

    /// Starts the daemon, if there is none and there is a domain for it.
    pub(super) async fn start_devd(&self) {
        let _service = self.service.lock().await;
        let domid = match &locked(&self.domains).driver {
            Some(driver) if driver.devd.is_none() => driver.domid,
            _ => return,
        };
        match self.devd(domid).await {
            Ok(devd) => {
                // The domain may have gone meanwhile.
                let mut domains = locked(&self.domains);
                if let Some(driver) = domains.driver.as_mut().filter(|driver| driver.domid == domid) {
                    driver.devd = Some(devd);
                }
            }
            Err(error) if self.driver().is_some_and(|(now, _)| now == domid) => {
                self.violation(format!("the daemon does not start: {error}"));
            }
            Err(_) => {}
        }
    }

    async fn devd(&self, domid: DomId) -> Result<Devd, DaemonError> {
        let way = Arc::<Way>::default();
        let dial = Dial { store: self.store.clone(), domid, way: way.clone() };
        let reconnect = Reconnect { within: Duration::MAX, ..Reconnect::default() };
        let client =
            Client::connect_with(dial, Config { reconnect: Some(reconnect), ..Config::default() }).await?;
        let mut settings = Settings::default();
        settings.interfaces = self.interfaces.path().to_owned();
        let scripts = match &locked(&self.domains).driver {
            Some(driver) => driver.scripts.clone(),
            None => return Err(DaemonError::NoNotes),
        };
        let stop = CancellationToken::new();
        let daemon = Daemon::new(client, scripts, settings).await?;
        let task = tokio::spawn(daemon.run(stop.clone(), |_| {}, |_| {}));
        Ok(Devd { way, stop, task })
    }

    fn take_devd(&self) -> Option<Devd> {
        locked(&self.domains).driver.as_mut()?.devd.take()
    }

    pub(super) async fn kill_devd(&self) {
        let _service = self.service.lock().await;
        if let Some(devd) = self.take_devd() {
            devd.kill().await;
            sleep(GUARD).await;
        }
    }

    /// Kills the daemon once it has been told so many bytes more, or soon.
    pub(super) async fn kill_devd_after(&self, bytes: usize) {
        if let Some(DriverDomain { devd: Some(devd), .. }) = &locked(&self.domains).driver {
            devd.way.is_last.store(true, Ordering::Relaxed);
        }
        self.cut_devd(bytes);
        sleep(SOON).await;
        self.kill_devd().await;
    }

    /// Asks the daemon to end, which it does once its scripts have.
    pub(super) async fn end_devd(&self) {
        let _service = self.service.lock().await;
        let Some(mut devd) = self.take_devd() else { return };
        devd.stop.cancel();
        match timeout(LONG, &mut devd.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(ended) => self.violation(format!("the daemon that was asked to end ended with {ended:?}")),
            Err(_) => {
                self.violation("the daemon does not end when asked to");
                devd.kill().await;
            }
        }
    }

    pub(super) fn cut_devd(&self, bytes: usize) {
        if let Some(DriverDomain { devd: Some(devd), .. }) = &locked(&self.domains).driver
            && let Some(proxy) = &*locked(&devd.way.proxy)
        {
            proxy.cut_after(bytes);
        }
    }

    /// Whether the daemon runs.
    pub(super) fn has_devd(&self) -> bool {
        let domains = locked(&self.domains);
        domains
            .driver
            .as_ref()
            .and_then(|driver| driver.devd.as_ref())
            .is_some_and(|devd| !devd.task.is_finished())
    }

    /// What went wrong with scripts.
    pub(super) fn audit_scripts(&self, scripts: &Scripts) {
        let (violations, runs, killed) = {
            let mut ledger = scripts.ledger();
            (mem::take(&mut ledger.violations), ledger.runs, ledger.killed)
        };
        violations.into_iter().for_each(|violation| self.violation(violation));
        let mut outcome = locked(&self.outcome);
        *outcome.ended.entry("script: run".to_owned()).or_default() += runs as u64;
        *outcome.ended.entry("script: ended early".to_owned()).or_default() += killed as u64;
    }
}

impl Devd {
    async fn kill(mut self) {
        self.task.abort();
        // It is gone when this returns.
        _ = (&mut self.task).await;
    }
}
