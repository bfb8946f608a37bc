//! The host of a side: a network namespace with an interface of a guest, Debian's xenstored with the device's nodes, and
//! what both look like.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xen_aodevice::sim;
use xs_client::{Client, Config, DomId, Path};

use super::switch::Switch;
use crate::daemon::{Daemon, DaemonKind};
use crate::failure::output_of;

/// The guest.
pub(super) const GUEST: DomId = DomId(1);

pub(super) const BACKEND: &str = "/local/domain/0/backend/vif/1/0";
pub(super) const FRONTEND: &str = "/local/domain/1/device/vif/0";

/// What every host has: the ends of the guest's interfaces, and settings that leave nothing to chance.
const BASE: &[&str] = &[
    "link set lo up",
    "link add vif1.0 address 02:00:00:00:00:01 type veth peer name guest0 address 02:00:00:00:00:02",
    "link add vif1.0-emu address 02:00:00:00:00:03 type veth peer name guest1 address 02:00:00:00:00:04",
    "link set guest0 up",
    "link set guest1 up",
];

/// For how long a host must look the same before it counts, and how long that may take. The kernel tells of carriers
/// a second late.
const SETTLED: Duration = Duration::from_millis(1200);
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct Host {
    daemon: Daemon,
    pub(super) switch: Option<Switch>,
    pub(super) client: Client,
}

impl Host {
    /// Sets the host up in the namespaces of this process.
    pub(super) async fn start(setup: &[&str], keys: &[(&str, &str)]) -> Result<Self> {
        Self::with_switch(setup, &[], keys).await
    }

    /// The same with switches of Open vSwitch, if there are commands that make some.
    pub(super) async fn with_switch(setup: &[&str], switch: &[&str], keys: &[(&str, &str)]) -> Result<Self> {
        // An address is used at once, and not first looked for on the network.
        fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
        BASE.iter().chain(setup).try_for_each(|command| ip(command))?;
        let daemon = Daemon::start(DaemonKind::Xenstored)?;
        daemon.create_domain(GUEST)?;
        let client = Client::connect_unix(daemon.socket(), Config::default()).await?;
        sim::create_domain0(&client).await?;
        sim::create_domain(&client, GUEST, "guest").await?;
        let common = [("frontend-id", "1"), ("handle", "0"), ("state", "2"), ("hotplug-status", "")];
        for (key, value) in common.iter().chain(keys) {
            client.write(&Path::new(format!("{BACKEND}/{key}"))?, value.to_string()).await?;
        }
        client.write(&Path::new(format!("{FRONTEND}/mtu"))?, "1500").await?;
        let switch = if switch.is_empty() { None } else { Some(Switch::start(switch)?) };
        Ok(Self { daemon, switch, client })
    }

    /// Where scripts find the store.
    pub(super) fn store(&self) -> &std::path::Path {
        self.daemon.socket()
    }

    /// Ends Open vSwitch.
    pub(super) fn end_switch(&mut self) {
        self.switch = None;
    }

    /// What the host looks like, when it has settled.
    pub(super) async fn view(&self) -> Result<BTreeMap<String, String>> {
        let (begun, mut since) = (Instant::now(), Instant::now());
        let mut last = network()?;
        while since.elapsed() < SETTLED {
            ensure!(begun.elapsed() < PATIENCE, "the network does not settle");
            sleep(LOOK);
            let now = network()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        let tree = self.client.read_tree(&Path::new("/local/domain")?).await?.context("an empty store")?;
        last.extend(tree.nodes().map(|(name, node)| {
            (format!("store/{name}"), String::from_utf8_lossy(&node.value).into_owned())
        }));
        if self.switch.is_some() {
            last.extend(Switch::view()?);
        }
        // Its interfaces have addresses by chance.
        last.retain(|key, _| !(key.contains("/ovs") && key.ends_with("/address")));
        Ok(last)
    }
}

/// Runs `ip` with these words.
pub(super) fn ip(command: &str) -> Result<()> {
    output_of(Command::new("ip").args(command.split_ascii_whitespace())).map(drop)
}

/// What the kernel tells of the network.
pub(super) fn network() -> Result<BTreeMap<String, String>> {
    let mut view = BTreeMap::new();
    let listed = |program: &str, args: &str| -> Result<Vec<Value>> {
        let printed = output_of(Command::new(program).args(args.split(' ')))?;
        serde_json::from_slice(&printed).with_context(|| format!("reading what {program} {args} printed"))
    };
    for (class, program, args) in [
        ("links", "ip", "-json -details link show"),
        ("addresses", "ip", "-json address show"),
        ("ports", "bridge", "-json -details link show"),
    ] {
        for entry in listed(program, args)? {
            let name = entry["ifname"].as_str().unwrap_or_default().to_owned();
            flatten(&format!("{class}/{name}"), &entry, &mut view);
        }
    }
    for (class, args) in [
        ("routes", "-json -details -4 route show table all"),
        ("routes6", "-json -details -6 route show table all"),
    ] {
        // Routes have no names; their order is the kernel's.
        let mut routes: Vec<_> = listed("ip", args)?.iter().map(Value::to_string).collect();
        routes.sort();
        routes.dedup();
        view.extend(routes.into_iter().map(|route| (format!("{class}/{route}"), String::new())));
    }
    for family in ["ipv4", "ipv6"] {
        for interface in fs::read_dir(format!("/proc/sys/net/{family}/conf"))? {
            let interface = interface?;
            let name = interface.file_name().display().to_string();
            for setting in fs::read_dir(interface.path())? {
                let setting = setting?;
                // Some may not be read, and one is a secret.
                if let Ok(value) = fs::read_to_string(setting.path()) {
                    let key = format!("settings/{family}/{name}/{}", setting.file_name().display());
                    view.insert(key, value.trim_end().to_owned());
                }
            }
        }
    }
    Ok(view)
}

/// The members of a value by their paths, without clocks.
fn flatten(path: &str, value: &Value, view: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(name, _)| !name.ends_with("_timer")) {
                flatten(&format!("{path}/{name}"), member, view);
            }
        }
        Value::Array(entries) if entries.iter().any(Value::is_object) => {
            for (number, entry) in entries.iter().enumerate() {
                flatten(&format!("{path}/{number}"), entry, view);
            }
        }
        value => _ = view.insert(path.to_owned(), value.to_string()),
    }
}
