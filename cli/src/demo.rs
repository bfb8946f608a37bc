//! `demo`: the main job on an embedded store, told as it happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use xen_aodevice::vbd::{Vbd, Vdev};
use xen_aodevice::vif::Vif;
use xen_aodevice::{Device, Failure, Force, Kind, Limits, Step, Success, Toolstack, WaitFor, multi};
use xen_devstate::{Goal, StateValue, wait};
use xs_client::{Client, DomId, Error, Path};

use crate::args::DemoArgs;
use crate::output::say;
use crate::problem::{Code, Exit, Problem};
use crate::signals::cancel_on_signal;
use crate::table;
use crate::world::{GUEST, World};

/// Tells lines with the time since the demo began.
#[derive(Clone, Copy)]
struct Story(Instant);

impl Story {
    fn tell(&self, who: &str, what: &str) {
        say(format!("{:7.3} s  {who:<9} {what}\n", self.0.elapsed().as_secs_f64()));
    }
}

pub(crate) async fn run(args: &DemoArgs) -> Result<Exit, Problem> {
    let story = Story(Instant::now());
    let cancel = cancel_on_signal();
    let world = World::embedded(args.latency).await?;
    let client = &world.client;
    let toolstack = world.toolstack(Limits::default()).await?.with_observer(move |step: &Step| {
        story.tell("toolstack", &step.to_string());
    });
    let unreadable = |error: Error| Problem::store("cannot read the embedded store", &error);
    let before = dump(client).await.map_err(unreadable)?;
    let states = tokio::spawn(tell_states(client.clone(), story));

    story.tell("demo", "a guest runs; attaching a disk and a network interface at once");
    let attached = attach(&toolstack, &cancel).await;
    let outcome = match attached {
        Ok(devices) => {
            for kind in [Kind::Vbd, Kind::Vif] {
                let devices = xen_aodevice::list(client, GUEST, kind).await.map_err(unreadable)?;
                say(format!("\n{}{}", table::header(Some(kind)), table::rows(Some(kind), &devices)));
            }
            say("\n");
            story.tell("demo", "both are connected; detaching them");
            let detaching = devices.iter().map(|device| {
                toolstack.remove(GUEST, (device.id.kind, device.id.devid), Force::Never, &cancel)
            });
            multi::all(detaching).await.into_result()
        }
        Err(failure) => Err(failure),
    };
    states.abort();
    let after = dump(client).await.map_err(unreadable)?;
    match outcome {
        Ok(_) => prove(story, &before, &after),
        Err(failure) => {
            let left =
                if before == after { "nothing of the devices is left" } else { "the store has changed" };
            story.tell("demo", left);
            Err(failure.into())
        }
    }
}

async fn attach(toolstack: &Toolstack, cancel: &CancellationToken) -> Result<Vec<Success>, Box<Failure>> {
    // Any file does: the simulated script puts nothing behind it.
    let target = std::env::current_exe().map_or_else(|_| "/".to_owned(), |path| path.display().to_string());
    let xvda = Vdev::from_devid(51712);
    let devices = [Device::Vbd(Vbd::new(target, xvda)), Device::Vif(Vif::default())];
    let adding = devices.iter().map(|device| toolstack.add(GUEST, device, WaitFor::Connected, cancel));
    let added = multi::all(adding).await.into_result()?;
    // Done is when the backend is connected; the guest sees that a moment later.
    for device in &added {
        if let Ok(state) = device.id.frontend().and_then(|frontend| frontend.join("state")) {
            wait(toolstack.client(), &state, Goal::CONNECTED, Duration::from_secs(10), cancel).await;
        }
    }
    Ok(added)
}

fn prove(story: Story, before: &Dump, after: &Dump) -> Result<Exit, Problem> {
    if before == after {
        let count = after.len();
        story.tell("demo", &format!("the store is as it was: {count} nodes, none of them of a device"));
        return Ok(Exit::Done);
    }
    let differs = |path: &&Path| before.get(*path) != after.get(*path);
    let changed: Vec<&str> = before.keys().chain(after.keys()).filter(differs).map(Path::as_str).collect();
    let tried = "cannot show that the devices are gone from the store";
    Err(Problem::new(Code::Demo, tried, format!("changed: {}", changed.join(", ")), "report this as a bug"))
}

/// Every node with its value and permissions.
type Dump = BTreeMap<Path, (Vec<u8>, String)>;

async fn dump(client: &Client) -> Result<Dump, Error> {
    let mut nodes = Dump::new();
    let mut todo = vec![Path::root()];
    while let Some(path) = todo.pop() {
        for name in client.directory(&path).await? {
            todo.push(path.join(name)?);
        }
        let perms = client.get_perms(&path).await?.to_string();
        nodes.insert(path.clone(), (client.read(&path).await?.to_vec(), perms));
    }
    Ok(nodes)
}

/// Tells every move of both ends of every device, as far as an eye that looks at hints can see.
async fn tell_states(client: Client, story: Story) -> Result<(), Error> {
    let roots = [
        ("backend", Path::new(format!("/local/domain/{}/backend", DomId::DOM0))?),
        ("frontend", Path::new(format!("/local/domain/{GUEST}/device"))?),
    ];
    let mut seen: BTreeMap<Path, StateValue> = BTreeMap::new();
    let mut backends = client.watch(&roots[0].1).await?;
    let mut frontends = client.watch(&roots[1].1).await?;
    loop {
        let (who, changes) = tokio::select! {
            changes = backends.changed() => (roots[0].0, changes?),
            changes = frontends.changed() => (roots[1].0, changes?),
        };
        for path in changes.paths.iter().filter_map(state_node) {
            let name: Vec<&str> = path.names().filter(|name| !matches!(*name, "local" | "domain")).collect();
            let device = name[1..].join("/").replace("/state", "");
            let value = client.read_opt(&path).await?.map(|value| StateValue::parse(&value));
            match (value, seen.get(&path)) {
                (Some(value), Some(last)) if value != *last => {
                    story.tell(who, &format!("{device}: {last} -> {value}"));
                    seen.insert(path, value);
                }
                (Some(value), None) => {
                    story.tell(who, &format!("{device}: {value}"));
                    seen.insert(path, value);
                }
                (None, Some(_)) => {
                    story.tell(who, &format!("{device}: gone"));
                    seen.remove(&path);
                }
                _ => {}
            }
        }
    }
}

/// The state node of the device that a changed path belongs to: the path itself, or below a
/// device directory.
fn state_node(path: &Path) -> Option<Path> {
    if path.name() == "state" {
        return Some(path.clone());
    }
    let is_device = path.name().bytes().all(|byte| byte.is_ascii_digit());
    is_device.then(|| path.join("state").ok())?
}
