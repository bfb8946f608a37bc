//! Domain 0, a driver domain and a guest.

use std::fs;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lab_proxy::Proxy;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use xen_aodevice::devd::{Daemon, DaemonError, Settings};
use xen_aodevice::sim::{self, Drivers};
use xen_hotplug::{Action, Ending, Kind, Limits, Output, Permit, Report, Request, Runner};
use xs_client::{Access, Client, Config, Connect, DomId, Path, Permissions, Reconnect};
use xs_store::Store;

use super::qemus::SimQemus;

pub(crate) const DRIVER: DomId = DomId(1);
pub(crate) const GUEST: DomId = DomId(2);

/// The backend and the note of the guest's `xvda`.
pub(crate) const BE: &str = "/local/domain/1/backend/vbd/2/51712";
pub(crate) const NOTE: &str = "/local/domain/1/libxl/2/devd/vbd/51712";
/// Those of its interface 0.
pub(crate) const VIF: &str = "/local/domain/1/backend/vif/2/0";

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(1000);

pub(crate) fn path(text: impl AsRef<str>) -> Path {
    Path::new(text.as_ref()).unwrap()
}

/// A lock whose holder may have panicked.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a script does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Line {
    /// What the stock one does, and exits with 0 after so many seconds.
    Takes(f64),
    /// Writes these keys and exits with this status.
    Says(&'static [(&'static str, &'static str)], i32),
    /// Nothing, for ever.
    Hangs,
    /// Nothing: it cannot be started.
    IsMissing,
}

/// One of which as many run as may, and none ends.
pub(crate) const QUEUES: &str = "/etc/xen/scripts/queues";

/// The scripts of the driver domain.
#[derive(Debug)]
pub(crate) struct Scripts {
    client: Client,
    pub(crate) lines: Mutex<Vec<(&'static str, Line)>>,
    /// What has begun and how it ended, in order.
    pub(crate) runs: Mutex<Vec<String>>,
    pub(crate) last: Mutex<Option<Request>>,
    /// How many run now, and how many did at most.
    at_once: Mutex<(usize, usize)>,
    /// The devices that have a script running: two of one device never do.
    running: Mutex<Vec<(Kind, u32, u32)>>,
    /// What scripts have made and not given back, one for each device.
    pub(crate) held: Mutex<Vec<(u32, u32)>>,
    /// What was made while it was there already: it leaks.
    pub(crate) leaked: Mutex<usize>,
}

/// A script that runs.
struct Running<'a> {
    scripts: &'a Scripts,
    key: (Kind, u32, u32),
    ended: Option<String>,
    name: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Self { scripts, key, .. } = self;
        locked(&scripts.running).retain(|other| other != key);
        locked(&scripts.at_once).0 -= 1;
        let ended = self.ended.take().unwrap_or_else(|| "was killed".to_owned());
        locked(&scripts.runs).push(format!("{} {ended}", self.name));
    }
}

impl Scripts {
    fn new(client: Client) -> Self {
        Self {
            client,
            lines: Mutex::default(),
            runs: Mutex::default(),
            last: Mutex::default(),
            at_once: Mutex::default(),
            running: Mutex::default(),
            held: Mutex::default(),
            leaked: Mutex::default(),
        }
    }

    /// What the runs of this action do from now on.
    pub(crate) fn on(&self, action: &'static str, line: Line) {
        let mut lines = locked(&self.lines);
        lines.retain(|(of, _)| *of != action);
        lines.push((action, line));
    }

    pub(crate) fn runs(&self) -> Vec<String> {
        locked(&self.runs).clone()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        locked(&self.at_once).1
    }

    async fn play(&self, request: &Request) -> Ending {
        let action = request.args()[0];
        let line = locked(&self.lines).iter().find(|(of, _)| *of == action).map(|(_, line)| *line);
        match line {
            Some(Line::Hangs) => std::future::pending().await,
            Some(Line::IsMissing) => Ending::NotStarted,
            Some(Line::Says(keys, status)) => {
                for (key, value) in keys {
                    let node = path(format!("{}/{key}", request.directory()));
                    self.client.write(&node, *value).await.unwrap();
                }
                Ending::Exited(status)
            }
            Some(Line::Takes(_)) | None => {
                let seconds = if let Some(Line::Takes(seconds)) = line { seconds } else { 0.0 };
                sleep(Duration::from_secs_f64(seconds / 2.0)).await;
                let device = (request.fe, request.devid);
                {
                    let mut held = locked(&self.held);
                    let was_held = held.contains(&device);
                    held.retain(|other| *other != device);
                    if request.action == Action::Add {
                        held.push(device);
                        *locked(&self.leaked) += usize::from(was_held);
                    }
                }
                let stock = sim::Scripts::new(self.client.clone(), Duration::from_secs_f64(seconds / 2.0));
                stock.run(request, &Limits::default(), &CancellationToken::new()).await.ending
            }
        }
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
            if request.script.as_os_str() == QUEUES {
                return std::future::pending().await;
            }
            if !permit.await {
                return Report::new(Ending::Withdrawn, Output::default(), Duration::ZERO);
            }
            *locked(&self.last) = Some(request.clone());
            let key = (request.kind, request.fe, request.devid);
            {
                let mut running = locked(&self.running);
                assert!(!running.contains(&key), "two scripts of one device at once: {request}");
                running.push(key);
                let mut at_once = locked(&self.at_once);
                at_once.0 += 1;
                at_once.1 = at_once.1.max(at_once.0);
            }
            let copy = if request.copy.is_some() { " in a copy" } else { "" };
            let name = format!("{} {}{copy}", request.devid, request.args()[0]);
            let mut running = Running { scripts: self, key, ended: None, name };
            let ending = tokio::select! {
                biased;
                () = cancel.cancelled() => Ending::Aborted,
                ending = self.play(request) => ending,
                () = sleep(limits.deadline) => Ending::TimedOut,
            };
            running.ended = Some(ending.to_string());
            Report::new(ending, Output::default(), Duration::ZERO)
        })
    }
}

/// A way to the store that can be cut.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    store: Store,
    pub(crate) proxy: Arc<Mutex<Option<Proxy>>>,
}

impl Connect for Dial {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "the test's store".to_owned()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        let (stream, proxy) = Proxy::over(self.store.connect(DRIVER));
        *locked(&self.proxy) = Some(proxy);
        Ok(stream)
    }
}

pub(crate) struct World {
    pub(crate) store: Store,
    /// The toolstack.
    pub(crate) dom0: Client,
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) qemus: Arc<SimQemus>,
    /// Where the driver domain's interfaces are.
    pub(crate) net: TempDir,
    _drivers: Vec<Drivers>,
}

/// A daemon that runs.
pub(crate) struct Devd {
    pub(crate) client: Client,
    pub(crate) dial: Dial,
    stop: CancellationToken,
    task: JoinHandle<Result<(), DaemonError>>,
    pub(crate) events: Arc<Mutex<Vec<String>>>,
    pub(crate) ready: Arc<Mutex<Option<usize>>>,
}

impl Drop for Devd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Devd {
    /// Ends it by a signal.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        timeout(LONG, &mut self.task).await.unwrap().unwrap().unwrap();
    }

    /// Ends it as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
    }

    pub(crate) fn events(&self) -> Vec<String> {
        locked(&self.events).clone()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let mut world = Self::without_drivers().await;
        world.start_drivers();
        world
    }

    /// The same, whose kernels are stopped.
    pub(crate) async fn without_drivers() -> Self {
        let store = Store::new();
        let dom0 = Client::over(store.connect(DomId::DOM0), Config::default());
        sim::create_domain0(&dom0).await.unwrap();
        for (domid, name) in [(DRIVER, "dd"), (GUEST, "g")] {
            store.introduce(domid);
            sim::create_domain(&dom0, domid, name).await.unwrap();
        }
        for node in ["libxl", "device-model"] {
            let node = path(format!("/local/domain/{DRIVER}/{node}"));
            dom0.mkdir(&node).await.unwrap();
            dom0.set_perms(&node, Permissions::owned_by(DRIVER, Access::None)).await.unwrap();
        }
        let scripts = Client::over(store.connect(DRIVER), Config::default());
        let net = tempfile::tempdir().unwrap();
        fs::create_dir(net.path().join("vif2.0")).unwrap();
        let qemus = Arc::new(SimQemus::new(store.clone()));
        Self { store, dom0, scripts: Arc::new(Scripts::new(scripts)), qemus, net, _drivers: Vec::new() }
    }

    pub(crate) fn start_drivers(&mut self) {
        let connect = |domid| Client::over(self.store.connect(domid), Config::default());
        let latency = Duration::from_millis(1);
        self._drivers = vec![
            Drivers::backends(connect(DRIVER), DRIVER, latency).unwrap(),
            Drivers::frontends(connect(GUEST), GUEST, latency).unwrap(),
        ];
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.interfaces = self.net.path().to_owned();
        settings.qemus = self.qemus.clone();
        settings
    }

    pub(crate) async fn devd(&self) -> Devd {
        self.devd_with(self.settings()).await
    }

    pub(crate) async fn devd_with(&self, settings: Settings) -> Devd {
        let dial = Dial { store: self.store.clone(), proxy: Arc::default() };
        let reconnect = Reconnect { within: Duration::MAX, ..Reconnect::default() };
        let config = Config { reconnect: Some(reconnect), ..Config::default() };
        let client = Client::connect_with(dial.clone(), config).await.unwrap();
        let daemon = Daemon::new(client.clone(), self.scripts.clone(), settings).await.unwrap();
        let (stop, events, ready) =
            (CancellationToken::new(), Arc::<Mutex<Vec<String>>>::default(), Arc::default());
        let (told, is_ready): (_, Arc<Mutex<Option<usize>>>) = (events.clone(), Arc::clone(&ready));
        let run = daemon.run(
            stop.clone(),
            move |event| locked(&told).push(event.to_string()),
            move |count| *locked(&is_ready) = Some(count),
        );
        let task = tokio::spawn(run);
        Devd { client, dial, stop, task, events, ready }
    }

    /// What `xl block-attach g /srv/d.img,raw,xvda,w,backend=dd` writes, and the same for other kinds and numbers.
    pub(crate) async fn attach(&self, be_kind: &str, devid: u32, keys: &[(&str, &str)]) {
        let kind = if be_kind == "qdisk" { "vbd" } else { be_kind };
        let fe = path(format!("/local/domain/{GUEST}/device/{kind}/{devid}"));
        let be = path(format!("/local/domain/{DRIVER}/backend/{be_kind}/{GUEST}/{devid}"));
        let (fe, be) = (&fe, &be);
        self.dom0
            .transaction(|tx| async move {
                let backends = path(format!("/local/domain/{DRIVER}/backend"));
                if tx.read_opt(&backends).await?.is_none() {
                    tx.mkdir(&backends).await?;
                }
                for (node, owner, reader) in [(fe, GUEST, DRIVER), (be, DRIVER, GUEST)] {
                    if tx.read_opt(node).await?.is_some() {
                        tx.rm(node).await?;
                    }
                    tx.mkdir(node).await?;
                    let perms = Permissions::owned_by(owner, Access::None).grant(reader, Access::Read);
                    tx.set_perms(node, perms).await?;
                }
                tx.write(&fe.join("backend")?, be.to_string()).await?;
                tx.write(&fe.join("backend-id")?, DRIVER.to_string()).await?;
                tx.write(&fe.join("state")?, "1").await?;
                tx.write(&be.join("frontend")?, fe.to_string()).await?;
                for (key, value) in keys {
                    tx.write(&be.join(key)?, (*value).to_owned()).await?;
                }
                tx.write(&be.join("frontend-id")?, GUEST.to_string()).await?;
                tx.write(&be.join("online")?, "1").await?;
                tx.write(&be.join("state")?, "1").await
            })
            .await
            .unwrap();
    }

    pub(crate) async fn attach_disk(&self) {
        self.attach_disk_as(51712).await;
    }

    pub(crate) async fn attach_disk_as(&self, devid: u32) {
        let keys =
            [("params", "/srv/d.img"), ("script", "/etc/xen/scripts/block"), ("type", "phy"), ("mode", "w")];
        self.attach("vbd", devid, &keys).await;
    }

    pub(crate) async fn attach_nic(&self) {
        let keys = [
            ("script", "/etc/xen/scripts/vif-bridge"),
            ("bridge", "xenbr0"),
            ("type", "vif"),
            ("hotplug-status", ""),
        ];
        self.attach("vif", 0, &keys).await;
    }

    /// The toolstack asks both ends to close.
    pub(crate) async fn close(&self, be: &str) {
        let be = &path(be);
        self.dom0
            .transaction(|tx| async move {
                tx.write(&be.join("online")?, "0").await?;
                tx.write(&be.join("state")?, "5").await
            })
            .await
            .unwrap();
    }

    /// The same, and what is left of a device when the daemon has done its part.
    pub(crate) async fn detach(&self, be: &str) {
        self.close(be).await;
        self.is_gone(be).await;
        let names: Vec<&str> = be.rsplit('/').take(3).collect();
        let kind = if names[2] == "qdisk" { "vbd" } else { names[2] };
        self.dom0.rm(&path(format!("/local/domain/{GUEST}/device/{kind}/{}", names[0]))).await.unwrap();
        self.remove_parents().await;
    }

    async fn remove_parents(&self) {
        for kind in ["vbd", "vif", "qdisk", "9pfs", "vfb"] {
            let parent = path(format!("/local/domain/{DRIVER}/backend/{kind}"));
            if self.dom0.directory_or_empty(&parent.join("2").unwrap()).await.unwrap().is_empty() {
                _ = self.dom0.rm(&parent).await;
            }
        }
    }

    pub(crate) async fn remove_frontends(&self) {
        self.dom0.rm(&path(format!("/local/domain/{GUEST}/device/vbd"))).await.unwrap();
        self.dom0.rm(&path(format!("/local/domain/{GUEST}/device/vif"))).await.unwrap();
        self.remove_parents().await;
    }

    pub(crate) async fn write(&self, node: &str, value: &str) {
        self.dom0.write(&path(node), value.to_owned()).await.unwrap();
    }

    pub(crate) async fn read(&self, node: &str) -> String {
        let value = self.dom0.read_opt(&path(node)).await.unwrap();
        value.map_or("not there".to_owned(), |value| value.escape_ascii().to_string())
    }

    /// Waits until a node says this.
    pub(crate) async fn reads(&self, node: &str, wanted: &str) {
        let mut watch = self.dom0.watch(&path(node)).await.unwrap();
        loop {
            let is = self.read(node).await;
            if is == wanted {
                return;
            }
            let changed = timeout(LONG, watch.changed()).await;
            changed
                .unwrap_or_else(|_| panic!("{node} stays at {is:?}, and does not get to {wanted:?}"))
                .unwrap();
        }
    }

    pub(crate) async fn is_gone(&self, node: &str) {
        self.reads(node, "not there").await;
    }

    /// Waits until the note of `xvda` is at this stage.
    pub(crate) async fn noted(&self, note: &str, stage: &str) {
        let begun = Instant::now();
        loop {
            let is = self.dom0.read_opt(&path(note)).await.unwrap();
            let is = is.and_then(|note| serde_json::from_slice::<serde_json::Value>(&note).ok());
            if is.as_ref().is_some_and(|is| is["stage"] == stage) {
                return;
            }
            assert!(begun.elapsed() < LONG, "the note does not get to {stage}: {is:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// All nodes of the driver domain's that a device leaves.
    pub(crate) async fn left(&self) -> Vec<String> {
        let mut nodes = Vec::new();
        let mut waiting: Vec<Path> = ["backend", "libxl", "device-model"]
            .map(|node| path(format!("/local/domain/{DRIVER}/{node}")))
            .into();
        while let Some(node) = waiting.pop() {
            let children = self.dom0.directory_or_empty(&node).await.unwrap();
            waiting.extend(children.iter().map(|child| node.join(child).unwrap()));
            nodes.extend(children.iter().map(|child| format!("{node}/{child}")));
        }
        nodes
    }
}
