//! The QEMUs of a driver domain: processes that live in the store alone, and outlive the daemon.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use xen_aodevice::devd::{Ended, ProcessId, QemuProcess, Qemus};
use xs_client::{Client, Config, DomId, Error, Path};
use xs_store::Store;

use super::world::{DRIVER, LONG, locked, path};

/// How they behave.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Why none can be started.
    pub(crate) refuses: Option<&'static str>,
    /// How long one takes to say that it serves devices; `None` for ever.
    pub(crate) starts: Option<Duration>,
    /// How long one takes to end once it was told; `None` for ever.
    pub(crate) ends: Option<Duration>,
    /// The image that one cannot open, and whether it dies of that.
    pub(crate) bad: Option<(&'static str, bool)>,
    /// Whether one takes no notice of devices.
    pub(crate) idles: bool,
}

#[derive(Debug)]
pub(crate) struct SimQemus {
    store: Store,
    logs: TempDir,
    pub(crate) manner: Mutex<Manner>,
    history: Mutex<Vec<String>>,
    processes: Mutex<Vec<Arc<SimQemu>>>,
}

/// How one has ended.
type Status = Arc<watch::Sender<Option<String>>>;

#[derive(Debug)]
pub(crate) struct SimQemu {
    fe: DomId,
    id: ProcessId,
    status: Status,
    told: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl SimQemu {
    fn has_ended(&self) -> bool {
        self.status.borrow().is_some()
    }

    fn dies(&self, how: &str) {
        self.task.abort();
        self.status.send_if_modified(|status| {
            let is_first = status.is_none();
            status.get_or_insert_with(|| how.to_owned());
            is_first
        });
    }
}

impl QemuProcess for SimQemu {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn ended(&self) -> Ended<'_> {
        let mut status = self.status.subscribe();
        Box::pin(async move { status.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }

    fn end(&self, at_once: bool) -> io::Result<()> {
        if at_once {
            self.dies("signal: 9 (SIGKILL)");
        } else {
            _ = self.told.send(true);
        }
        Ok(())
    }
}

impl SimQemus {
    pub(crate) fn new(store: Store) -> Self {
        let manner = Manner {
            refuses: None,
            starts: Some(Duration::from_secs(1)),
            ends: Some(Duration::from_millis(500)),
            bad: None,
            idles: false,
        };
        Self {
            store,
            logs: tempfile::tempdir().unwrap(),
            manner: Mutex::new(manner),
            history: Mutex::default(),
            processes: Mutex::default(),
        }
    }

    pub(crate) fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut locked(&self.manner));
    }

    /// What has become of them, in order.
    pub(crate) fn history(&self) -> Vec<String> {
        let mut told = locked(&self.history).clone();
        for process in locked(&self.processes).iter() {
            let status = process.status.borrow().clone();
            told[process.id.pid as usize - 1000] += &format!(" {}", status.as_deref().unwrap_or("runs"));
        }
        told
    }

    /// The one of a guest, which runs.
    pub(crate) fn of(&self, fe: DomId) -> Option<Arc<SimQemu>> {
        locked(&self.processes).iter().find(|process| process.fe == fe && !process.has_ended()).cloned()
    }

    /// The one of a guest crashes with these words.
    pub(crate) fn crash(&self, fe: DomId, words: &str) {
        self.say(fe, words);
        self.of(fe).expect("one runs").dies("signal: 11 (SIGSEGV)");
    }

    fn say(&self, fe: DomId, words: &str) {
        let mut log = fs::File::options().append(true).create(true).open(self.log(fe)).unwrap();
        writeln!(log, "{words}").unwrap();
    }

    /// Waits until none of a guest runs.
    pub(crate) async fn none_runs(&self, fe: DomId) {
        if let Some(process) = self.of(fe) {
            timeout(LONG, process.ended()).await.expect("it runs on");
        }
    }
}

impl Qemus for SimQemus {
    fn start(&self, fe: DomId) -> io::Result<Arc<dyn QemuProcess>> {
        let manner = locked(&self.manner).clone();
        if let Some(why) = manner.refuses {
            return Err(io::Error::other(why));
        }
        assert!(self.of(fe).is_none(), "two QEMUs of domain {fe}: {:?}", self.history());
        let pid = 1000 + u32::try_from(locked(&self.history).len()).unwrap();
        locked(&self.history).push(format!("{fe}:"));
        let id = ProcessId::new(pid, u64::from(pid) * 3);
        let status: Status = Arc::new(watch::channel(None).0);
        let told = Arc::new(watch::channel(false).0);
        let qemu = Serving {
            client: Client::over(self.store.connect(DRIVER), Config::default()),
            fe,
            manner,
            log: self.log(fe),
            refused: HashSet::new(),
            served: HashSet::new(),
        };
        let (is_told, ended) = (told.clone(), status.clone());
        let task = tokio::spawn(async move {
            let how = qemu.runs(is_told).await;
            ended.send_if_modified(|status| {
                let is_first = status.is_none();
                status.get_or_insert(how);
                is_first
            });
        });
        let process = Arc::new(SimQemu { fe, id, status, told, task });
        locked(&self.processes).push(process.clone());
        Ok(process)
    }

    fn find(&self, fe: DomId, process: Option<(u32, Option<u64>)>) -> Option<Arc<dyn QemuProcess>> {
        let found = self.of(fe)?;
        let is_it = |(pid, start): (u32, Option<u64>)| {
            pid == found.id.pid && start.is_none_or(|start| start == found.id.start)
        };
        process.is_none_or(is_it).then_some(found as Arc<dyn QemuProcess>)
    }

    fn log(&self, fe: DomId) -> PathBuf {
        self.logs.path().join(format!("qdisk-{fe}.log"))
    }
}

/// What the process does.
struct Serving {
    client: Client,
    fe: DomId,
    manner: Manner,
    log: PathBuf,
    /// Tried once, and not again.
    refused: HashSet<Path>,
    served: HashSet<Path>,
}

impl Serving {
    /// How it ends.
    async fn runs(mut self, told: Arc<watch::Sender<bool>>) -> String {
        let mut told = told.subscribe();
        let ended = tokio::select! {
            ended = self.serves() => ended,
            _ = told.wait_for(|told| *told) => Ok("exit status: 0".to_owned()),
        };
        if *told.borrow() {
            match self.manner.ends {
                Some(ends) => sleep(ends).await,
                None => std::future::pending().await,
            }
            for device in &self.served {
                _ = self.client.rm(device).await;
            }
        }
        ended.unwrap_or_else(|error| error.to_string())
    }

    async fn serves(&mut self) -> Result<String, Error> {
        match self.manner.starts {
            Some(starts) => sleep(starts).await,
            None => std::future::pending().await,
        }
        self.client.write(&path(format!("device-model/{}/state", self.fe)), "running").await?;
        let mut watch = self.client.watch(&path("backend")).await?;
        let mut fronts = self.client.watch(&path(format!("/local/domain/{}/device", self.fe))).await?;
        loop {
            for kind in ["qdisk", "9pfs"] {
                let directory = path(format!("backend/{kind}/{}", self.fe));
                for devid in self.client.directory_or_empty(&directory).await? {
                    if let Some(how) = self.sees(kind, &devid, directory.join(&devid)?).await? {
                        return Ok(how);
                    }
                }
            }
            tokio::select! {
                changed = watch.changed() => drop(changed?),
                changed = fronts.changed() => drop(changed?),
            }
        }
    }

    async fn read(&self, directory: &Path, key: &str) -> String {
        let value = match directory.join(key) {
            Ok(node) => self.client.read_opt(&node).await.ok().flatten(),
            Err(_) => None,
        };
        value.map(|value| String::from_utf8_lossy(&value).into_owned()).unwrap_or_default()
    }

    /// Looks at a device; yields how it dies of that.
    async fn sees(&mut self, kind: &str, devid: &str, device: Path) -> Result<Option<String>, Error> {
        let (state, online) = (self.read(&device, "state").await, self.read(&device, "online").await);
        let front = match Path::new(self.read(&device, "frontend").await) {
            Ok(front) => self.read(&front, "state").await,
            // It has gone meanwhile.
            Err(_) => return Ok(None),
        };
        let set = async |state: &str| self.client.write(&device.join("state")?, state.to_owned()).await;
        match (&*state, &*online) {
            _ if self.manner.idles => {}
            // What the one before has left at another state it never looks at.
            ("1", "1") if !self.served.contains(&device) && !self.refused.contains(&device) => {
                let params = self.read(&device, "params").await;
                if let Some((bad, is_deadly)) = self.manner.bad
                    && params.contains(bad)
                {
                    let mut log = fs::File::options().append(true).create(true).open(&self.log).unwrap();
                    writeln!(log, "qemu: failed to create '{kind}' device '{devid}': no such image").unwrap();
                    self.refused.insert(device.clone());
                    return Ok(is_deadly.then(|| "exit status: 1".to_owned()));
                }
                self.served.insert(device.clone());
                if kind == "qdisk" {
                    self.client.write(&device.join("hotplug-status")?, "connected").await?;
                }
                set("2").await?;
            }
            ("2", "1") if self.served.contains(&device) && matches!(&*front, "3" | "4") => set("4").await?,
            ("5", "0") if self.served.contains(&device) && matches!(&*front, "6" | "") => set("6").await?,
            ("6", "0") if self.served.contains(&device) && kind == "qdisk" => {
                self.served.remove(&device);
                self.client.rm(&device).await?;
            }
            _ => {}
        }
        Ok(None)
    }
}
