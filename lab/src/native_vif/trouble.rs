//! What becomes of a handler when something is in its way, or beside it: each kind of trouble in a namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio_util::sync::CancellationToken;
use xen_hotplug::native::vif::{self, Outcome, Script, VifError};
use xen_hotplug::native::{ToolError, Tools};
use xen_hotplug::{Action, Kind, Limits, Request};
use xs_client::Path as StorePath;

use super::SCRIPTS;
use super::host::{BACKEND, Host, ip, network};
use super::side::Performer;
use super::switch::Switch;
use crate::failure::output_of;

/// How often the interface comes and goes while it is set up.
const RACES: usize = 200;

/// How often it is set up and taken down again to see whether anything is left.
const CYCLES: usize = 10_000;

/// So many KiB more may be resident afterwards.
const GROWTH: usize = 1024;

/// So many interfaces are set up at a time by handlers, and as many by scripts.
const BESIDE: u32 = 6;

/// Kinds of trouble.
pub(super) const TROUBLES: &[&str] = &[
    "trouble/cancelled",
    "trouble/deadline",
    "trouble/not-permitted",
    "trouble/vanishing",
    "trouble/cycles",
    "trouble/beside",
    "trouble/extras",
    "trouble/switch/late",
    "trouble/switch/cancelled",
];

/// Runs into trouble, on a host with a bridge.
pub(super) async fn run(name: &str) -> Result<()> {
    if let Some(how) = name.strip_prefix("trouble/switch/") {
        return stuck(how == "cancelled").await;
    }
    let host = Host::start(&["link add br0 type bridge forward_delay 0", "link set br0 up"], &[]).await?;
    match name {
        "trouble/cancelled" => cancelled(),
        "trouble/deadline" => deadline(),
        "trouble/not-permitted" => not_permitted(),
        "trouble/vanishing" => vanishing(),
        "trouble/cycles" => cycles(),
        "trouble/beside" => beside(&host).await,
        "trouble/extras" => extras(&host).await,
        _ => bail!("no such trouble"),
    }
}

fn request(action: Action, devid: u32) -> Request {
    Request::new(Kind::Vif, action, 1, devid, format!("{SCRIPTS}/vif-bridge")).recorded("bridge", "br0")
}

fn call(action: Action, limits: Limits, cancel: &CancellationToken) -> Result<Outcome, VifError> {
    vif::run(Script::Bridge, &request(action, 0), &Tools::new(), &limits, cancel)
}

fn plainly(action: Action) -> Result<Outcome, VifError> {
    call(action, Limits::default(), &CancellationToken::new())
}

/// Sees to it that nothing changes.
fn unchanged<T>(act: impl FnOnce() -> T) -> Result<T> {
    let before = network()?;
    let result = act();
    ensure!(network()? == before, "something was changed");
    Ok(result)
}

fn cancelled() -> Result<()> {
    let cancel = CancellationToken::new();
    cancel.cancel();
    match unchanged(|| call(Action::Add, Limits::default(), &cancel))? {
        Err(VifError::Cancelled { .. }) => Ok(()),
        other => bail!("a cancelled run ended as {other:?}"),
    }
}

fn deadline() -> Result<()> {
    let limits = Limits::default().deadline(Duration::ZERO);
    match unchanged(|| call(Action::Add, limits, &CancellationToken::new()))? {
        Err(VifError::TimedOut { .. }) => Ok(()),
        other => bail!("a run without time ended as {other:?}"),
    }
}

fn not_permitted() -> Result<()> {
    let had = capabilities(None)?;
    let mut fewer = had;
    fewer.effective.remove(CapabilitySet::NET_ADMIN);
    set_capabilities(None, fewer)?;
    let result = unchanged(|| plainly(Action::Add));
    set_capabilities(None, had)?;
    match result? {
        Err(error @ VifError::NotPermitted { .. }) => {
            ensure!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            Ok(())
        }
        other => bail!("a run without the right to do it ended as {other:?}"),
    }
}

/// The interface goes and comes again meanwhile: an add succeeds or says so, and a remove has nothing left to do.
fn vanishing() -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                ip("link delete vif1.0")?;
                ip("link add vif1.0 type veth peer name guest0")?;
            }
            Ok(())
        });
        let runs = || -> Result<()> {
            for number in 0..RACES {
                let action = if number % 2 == 0 { Action::Add } else { Action::Remove };
                match plainly(action) {
                    Ok(_) => {}
                    Err(VifError::Vanished { .. }) if action == Action::Add => {}
                    Err(error) => bail!("{action}: {error:?}"),
                }
            }
            Ok(())
        };
        let result = runs();
        over.store(true, Ordering::Relaxed);
        other.join().map_err(|_| anyhow!("a thread panicked"))??;
        result
    })
}

/// Nothing is left of many cycles.
fn cycles() -> Result<()> {
    let cycle = || plainly(Action::Add).and_then(|_| plainly(Action::Remove));
    for _ in 0..CYCLES / 10 {
        _ = cycle()?;
    }
    let used = || -> Result<(usize, usize)> {
        let status = fs::read_to_string("/proc/self/status")?;
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok((fs::read_dir("/proc/self/fd")?.count(), resident.context("no resident size")?.parse()?))
    };
    let (descriptors, memory) = used()?;
    for _ in 0..CYCLES {
        _ = cycle()?;
    }
    let (descriptors_now, memory_now) = used()?;
    ensure!(descriptors_now == descriptors, "{descriptors} descriptors became {descriptors_now}");
    ensure!(memory_now <= memory + GROWTH, "{memory} KiB of memory became {memory_now}");
    Ok(())
}

/// Handlers and scripts set up interfaces of one bridge at the same time.
async fn beside(host: &Host) -> Result<()> {
    for devid in 1..=2 * BESIDE {
        ip(&format!("link add vif1.{devid} type veth peer name guest1.{devid}"))?;
        let bridge = StorePath::new(format!("/local/domain/0/backend/vif/1/{devid}/bridge"))?;
        host.client.write(&bridge, "br0").await?;
    }
    let performer = Performer::new(host, "script")?;
    for action in [Action::Add, Action::Remove] {
        let handlers: Vec<_> = (1..=BESIDE)
            .map(|devid| {
                let run = move || {
                    let request = request(action, devid);
                    vif::run(
                        Script::Bridge,
                        &request,
                        &Tools::new(),
                        &Limits::default(),
                        &CancellationToken::new(),
                    )
                };
                tokio::task::spawn_blocking(run)
            })
            .collect();
        let scripts = (BESIDE + 1..=2 * BESIDE).map(|devid| {
            let (performer, request) = (&performer, request(action, devid));
            async move { performer.perform(Script::Bridge, &request).await }
        });
        for well in futures_util::future::try_join_all(scripts).await? {
            ensure!(well, "a script failed beside handlers");
        }
        for handler in handlers {
            _ = handler.await??;
        }
        let view = network()?;
        for devid in 1..=2 * BESIDE {
            let is_port = view.contains_key(&format!("ports/vif1.{devid}/master"));
            ensure!(is_port == (action == Action::Add), "vif1.{devid} after {action}: a port is {is_port}");
        }
    }
    Ok(())
}

/// A hook that the script runs, and a DHCP server that it configures, are seen before a handler is chosen.
async fn extras(host: &Host) -> Result<()> {
    // Files that this host keeps as they are: the folder is one of this namespace.
    fs::create_dir_all("/run/upper")?;
    fs::create_dir_all("/run/work")?;
    let options = "lowerdir=/etc,upperdir=/run/upper,workdir=/run/work";
    output_of(Command::new("mount").args(["-t", "overlay", "-o", options, "overlay", "/etc"]))?;
    let seen = || [Script::Bridge, Script::Route, Script::Nat].map(|script| script.extras().is_some());
    ensure!(seen() == [false; 3], "this host has hooks, or a DHCP server, of its own: {:?}", seen());

    let hook = Path::new(SCRIPTS).join("vif-post.d/lab.hook");
    fs::create_dir_all(hook.with_file_name(""))?;
    fs::write(&hook, "echo $dev > /run/hooked\n")?;
    ensure!(seen() == [false; 3], "a hook that is not executable is none");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    ensure!(seen() == [true; 3], "a hook is not seen: {:?}", seen());
    host.client.write(&StorePath::new(format!("{BACKEND}/bridge"))?, "br0").await?;
    ensure!(
        Performer::new(host, "script")?.perform(Script::Bridge, &request(Action::Remove, 0)).await?,
        "failed"
    );
    ensure!(fs::read_to_string("/run/hooked")? == "vif1.0\n", "the script has run another hook");
    fs::remove_file(&hook)?;

    fs::write("/etc/dhcpd.conf", "")?;
    ensure!(seen() == [false, false, true], "a DHCP server is not seen: {:?}", seen());
    Ok(())
}

/// Open vSwitch does not answer: the run ends when it has to, and the port that the tool has asked for is taken back.
async fn stuck(cancelled: bool) -> Result<()> {
    let setup = ["add-br ovsbr0 -- set bridge ovsbr0 datapath_type=netdev"];
    let host = Host::with_switch(&[], &setup, &[]).await?;
    let before = Switch::view()?;
    host.switch.as_ref().context("no switch")?.stop()?;
    let path = format!("{SCRIPTS}/vif-openvswitch");
    let request = Request::new(Kind::Vif, Action::Add, 1, 0, path).recorded("bridge", "ovsbr0");
    let cancel = CancellationToken::new();
    let limits = Limits::default().deadline(Duration::from_secs(if cancelled { 40 } else { 2 }));
    let token = cancel.clone();
    let run = thread::spawn(move || vif::run(Script::OpenVswitch, &request, &Tools::new(), &limits, &token));
    if cancelled {
        while Switch::view()? == before {
            thread::sleep(Duration::from_millis(20));
        }
        cancel.cancel();
    }
    let ended = run.join().map_err(|_| anyhow!("a thread panicked"))?;
    match &ended {
        Err(VifError::Tool { error: ToolError::Cancelled { .. }, .. }) if cancelled => {}
        Err(VifError::Tool { error: ToolError::TimedOut { .. }, .. }) if !cancelled => {}
        other => bail!("it ended as {other:?}"),
    }
    ensure!(Switch::view()? == before, "a port is left: {:?}", Switch::view()?);
    Ok(())
}
