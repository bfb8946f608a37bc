//! A store with domain 0, a guest, and people who speak their lines at their times.
//!
//! Time is virtual: nothing here takes any, and what is said at 3 s is said at 3 s exactly.

mod scripts;

use std::sync::Arc;
use std::time::Duration;

use lab_proxy::Proxy;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Device, Failure, Force, Kind, Success, Toolstack, WaitFor, sim, vbd, vif};
use xs_client::{Client, Config, DomId, Error, Path};
use xs_store::Store;

pub(crate) use scripts::{Line, Scripts};

/// The guest.
pub(crate) const GUEST: DomId = DomId(1);

/// The directories of its disk `xvda`.
pub(crate) const BE: &str = "/local/domain/0/backend/vbd/1/51712";
pub(crate) const FE: &str = "/local/domain/1/device/vbd/51712";
pub(crate) const LX: &str = "/libxl/1/device/vbd/51712";
pub(crate) const SAVED: &str = "/tool/xendev/backend/vbd/1/51712";

/// What an operation ends with.
pub(crate) type Ended = Result<Success, Box<Failure>>;

/// The disk `xvda` of the specification's example.
pub(crate) fn disk() -> Device {
    Device::Vbd(vbd::parse(&["/srv/d.img,raw,xvda,w,script=block"]).unwrap())
}

/// A disk of another name.
pub(crate) fn disk_named(name: &str) -> Device {
    Device::Vbd(vbd::parse(&[format!("/srv/d.img,raw,{name},w,script=block")]).unwrap())
}

/// A network interface whose id and address are to be found.
pub(crate) fn nic() -> Device {
    Device::Vif(vif::parse(&["bridge=xenbr0"]).unwrap())
}

pub(crate) fn path(text: impl AsRef<str>) -> Path {
    Path::new(text.as_ref()).unwrap()
}

/// To the tenth of a second, which is what the vectors speak of.
pub(crate) fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// The three parts of a failure, as a person reads them.
pub(crate) fn told(failure: &Failure) -> Vec<String> {
    let observed = failure.observations();
    assert_eq!(failure.to_string(), format!("{}: {}", failure.tried(), observed[0]));
    [vec![failure.tried()], observed, vec![format!("{:?}", failure.hint())]].concat()
}

/// The warnings of a success, one a line.
pub(crate) fn warned(success: &Success) -> Vec<String> {
    success.warnings.iter().map(ToString::to_string).collect()
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Store,
    /// Domain 0 as the backends' kernel.
    pub(crate) dom0: Client,
    /// The guest itself.
    pub(crate) guest: Client,
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) toolstack: Toolstack,
    /// What stands between the toolstack and the store.
    pub(crate) proxy: Proxy,
    begun: Instant,
}

impl World {
    pub(crate) async fn new() -> Self {
        let store = Store::new();
        let dom0 = Client::over(store.connect(DomId::DOM0), Config::default());
        sim::create_domain0(&dom0).await.unwrap();
        store.introduce(GUEST);
        sim::create_domain(&dom0, GUEST, "g").await.unwrap();
        let guest = Client::over(store.connect(GUEST), Config::default());
        let scripts = Arc::new(Scripts::new(dom0.clone()));
        let (stream, proxy) = Proxy::over(store.connect(DomId::DOM0));
        let client = Client::over(stream, Config::default());
        let toolstack = Toolstack::new(client, scripts.clone()).await.unwrap();
        Self { store, dom0, guest, scripts, toolstack, proxy, begun: Instant::now() }
    }

    /// Another toolstack, on a connection of its own, with the same scripts.
    pub(crate) async fn another_toolstack(&self) -> Toolstack {
        let client = Client::over(self.store.connect(DomId::DOM0), Config::default());
        Toolstack::new(client, self.scripts.clone()).await.unwrap()
    }

    /// Seconds since the world began.
    pub(crate) fn clock(&self) -> f64 {
        tenths(self.begun.elapsed())
    }

    /// Waits until so many seconds after the world began.
    pub(crate) async fn at(&self, seconds: f64) {
        sleep_until(self.begun + Duration::from_secs_f64(seconds)).await;
    }

    pub(crate) async fn add(&self, device: Device) -> Ended {
        self.add_with(device, WaitFor::Script, &CancellationToken::new()).await
    }

    pub(crate) async fn add_with(
        &self,
        device: Device,
        wait_for: WaitFor,
        cancel: &CancellationToken,
    ) -> Ended {
        self.toolstack.add(GUEST, &device, wait_for, cancel).await
    }

    pub(crate) async fn remove(&self, force: Force) -> Ended {
        self.remove_with(force, &CancellationToken::new()).await
    }

    pub(crate) async fn remove_with(&self, force: Force, cancel: &CancellationToken) -> Ended {
        self.toolstack.remove(GUEST, (Kind::Vbd, 51712), force, cancel).await
    }

    /// Adds `xvda` with a backend that is ready at once, and a guest that connects.
    pub(crate) async fn add_connected(&self) {
        let (added, ()) = tokio::join!(self.add(disk()), async {
            self.exists(BE).await;
            self.backend_says("2").await;
        });
        added.unwrap();
        self.guest_says("3").await;
        self.backend_says("4").await;
        self.guest_says("4").await;
        self.scripts.forget();
    }

    /// The backend of `xvda` writes its state.
    pub(crate) async fn backend_says(&self, state: &'static str) {
        self.dom0.write(&path(format!("{BE}/state")), state).await.unwrap();
    }

    /// The guest writes the state of its `xvda`.
    pub(crate) async fn guest_says(&self, state: &'static str) {
        self.guest.write(&path(format!("{FE}/state")), state).await.unwrap();
    }

    pub(crate) async fn write(&self, node: &str, value: impl Into<bytes::Bytes>) {
        self.dom0.write(&path(node), value).await.unwrap();
    }

    /// The value of a node, in words if there is none.
    pub(crate) async fn read(&self, node: &str) -> String {
        let value = self.dom0.read_opt(&path(node)).await.unwrap();
        value.map_or("not there".to_owned(), |value| value.escape_ascii().to_string())
    }

    /// A key of the saved copy of BE, in words if there is none.
    pub(crate) async fn saved(&self, key: &str) -> String {
        let copy = self.dom0.read_opt(&path(SAVED)).await.unwrap();
        let copy = copy.map(|copy| serde_json::from_slice(&copy).unwrap()).unwrap_or(serde_json::Value::Null);
        copy[key].as_str().unwrap_or("not there").to_owned()
    }

    /// Writes a key of the saved copy.
    pub(crate) async fn save(&self, key: &str, value: &str) {
        let copy = self.dom0.read_opt(&path(SAVED)).await.unwrap();
        let mut copy = copy.map_or(serde_json::json!({}), |copy| serde_json::from_slice(&copy).unwrap());
        copy[key] = value.into();
        self.write(SAVED, copy.to_string()).await;
    }

    /// Waits until a node is there.
    pub(crate) async fn exists(&self, node: &str) {
        self.reads(node, |value| value != "not there").await;
    }

    /// Waits until a node is not there any more.
    pub(crate) async fn is_gone(&self, node: &str) {
        self.reads(node, |value| value == "not there").await;
    }

    /// Waits until the toolstack tells the backend of `xvda` to close.
    pub(crate) async fn is_told_to_close(&self) {
        self.reads(&format!("{BE}/state"), |value| value == "5").await;
    }

    pub(crate) async fn reads(&self, node: &str, wanted: impl Fn(&str) -> bool) {
        let mut watch = self.dom0.watch(&path(node)).await.unwrap();
        while !wanted(&self.read(node).await) {
            let changed = timeout(Duration::from_secs(1000), watch.changed()).await;
            changed.unwrap_or_else(|_| panic!("{node} does not change")).unwrap();
        }
    }

    /// The whole store, as `xenstore-ls -fp` lists it.
    pub(crate) async fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut waiting = vec![Path::root()];
        while let Some(node) = waiting.pop() {
            let mut children = self.dom0.directory(&node).await.unwrap();
            children.reverse();
            waiting.extend(children.iter().map(|child| node.join(child).unwrap()));
            if node != Path::root() {
                lines.push(self.line(&node).await.unwrap());
            }
        }
        lines
    }

    async fn line(&self, node: &Path) -> Result<String, Error> {
        let (value, perms) = (self.dom0.read(node).await?, self.dom0.get_perms(node).await?);
        Ok(format!("{node} = \"{}\"   ({perms})", value.escape_ascii()))
    }
}

/// Somebody who writes to this directory of his and makes and removes nodes there all the time, as long as he may: between
/// any two requests of others. A round takes a tenth of a second.
pub(crate) fn storm(client: Client, directory: &str) -> JoinHandle<()> {
    let (directory, noise) = (path(directory), path(format!("{directory}/noise")));
    let state = path(format!("{directory}/state"));
    tokio::spawn(async move {
        let perms = client.get_perms(&directory).await.unwrap();
        let value = client.read(&state).await.unwrap();
        let writes = async || while client.write(&state, value.clone()).await.is_ok() {};
        let rounds = async {
            while client.write(&noise, "x").await.is_ok() {
                _ = client.rm(&noise).await;
                _ = client.set_perms(&directory, perms.clone()).await;
                tokio::time::advance(Duration::from_millis(100)).await;
            }
        };
        tokio::join!(writes(), writes(), writes(), rounds);
    })
}

/// The lines of the second listing that the first does not have.
pub(crate) fn added(before: &[String], after: &[String]) -> Vec<String> {
    after.iter().filter(|line| !before.contains(line)).cloned().collect()
}
