//! What the handler promises beside being equal: nothing leaks, and races are survived.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xen_hotplug::Action;
use xen_hotplug::native::block::{Attached, Block, Detached, Disk, Domain, Failure, Mode, Saved, detach};

use super::observe::loops_of;
use super::world::{GUEST, LIMIT, OTHER, World, losetup, must};

type Course = fn(World) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// All of them, with their names.
pub(super) fn all() -> Vec<(&'static str, Course)> {
    vec![
        ("hard: attaches at once", |world| Box::pin(at_once(world))),
        ("hard: a thousand attaches", |world| Box::pin(a_thousand(world))),
        ("hard: an attach that is dropped", |world| Box::pin(dropped(world))),
        ("hard: an attach that is cancelled", |world| Box::pin(cancelled(world))),
        ("hard: a script that has the lock", |world| Box::pin(locked(world))),
        ("hard: a script beside a handler", |world| Box::pin(beside(world))),
        ("hard: two handlers", |world| Box::pin(two(world))),
        ("hard: detaches", |world| Box::pin(detaches(world))),
        ("hard: a device that is open", |world| Box::pin(open_device(world))),
        ("hard: a guest's name", |world| Box::pin(named(world))),
    ]
}

fn disk(world: &World, name: &str) -> Result<Disk> {
    let image = world.image(name, 1 << 20)?;
    Ok(Disk { params: image.to_string_lossy().into_owned(), mode: Mode::Write })
}

async fn attached(disk: &Disk, domid: u32) -> Result<Attached, Failure> {
    attached_by(&Block::new(), disk, domid).await
}

async fn attached_by(block: &Block, disk: &Disk, domid: u32) -> Result<Attached, Failure> {
    let begun = block.begin(disk, LIMIT, &CancellationToken::new()).await?;
    let guest = Domain { domid, vm: Some(format!("/vm/{domid}")), ..Domain::default() };
    begun.attach(guest, Vec::new()).await
}

fn left(world: &World) -> Result<usize> {
    Ok(loops_of(&world.path(""))?.len())
}

/// Sixteen images at once, without a lock in common, while losetup takes devices too: each gets a device of its own.
async fn at_once(world: World) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        let disk = disk(&world, &format!("image-{number}"))?;
        let block = Block::with_lock_dir(&world.path(&format!("locks-{number}")));
        tasks.spawn(async move { attached_by(&block, &disk, number).await.map(Attached::keep) });
    }
    let other = world.image("other", 1 << 20)?.to_string_lossy().into_owned();
    let others = tokio::task::spawn_blocking(move || {
        (0..16).map(|_| losetup(&["--find", "--show", &other])).filter(Result::is_ok).count()
    });
    let results = tasks.join_all().await;
    // Before a failure is told: what losetup makes later would be left.
    let others = others.await?;
    let mut saved = Vec::new();
    for result in results {
        saved.push(result?.context("a file has something to undo")?);
    }
    let mut nodes: Vec<String> = saved.iter().map(|saved| saved.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    ensure!(nodes.len() == 16, "devices were given twice: {nodes:?}");
    ensure!(left(&world)? == 16 + others, "{} devices, of which {others} are losetup's", left(&world)?);
    for saved in saved {
        detach(saved, LIMIT, &CancellationToken::new()).await?;
    }
    ensure!(left(&world)? == others, "{} devices are left, of which {others} are losetup's", left(&world)?);
    Ok(())
}

/// One after the other, every third of which is refused: no device and no descriptor is left.
async fn a_thousand(world: World) -> Result<()> {
    let (disk, never) = (disk(&world, "image")?, CancellationToken::new());
    let descriptors = || anyhow::Ok(fs::read_dir("/proc/self/fd")?.count());
    let mut before = None;
    for number in 0..1000 {
        let ready = attached(&disk, 1).await?;
        if number % 3 == 0 {
            drop(ready);
        } else {
            let saved = ready.keep().context("a file has something to undo")?;
            let detached = detach(saved, LIMIT, &never).await?;
            // Programs of this domain look at new devices.
            ensure!(matches!(detached, Detached::Now | Detached::WhenClosed), "{detached:?}");
        }
        let now = descriptors()?;
        let first = *before.get_or_insert(now);
        ensure!(now <= first, "{now} descriptors after {number} attaches, {first} after the first");
    }
    gone(&world).await
}

async fn dropped(world: World) -> Result<()> {
    let disk = disk(&world, "image")?;
    let ready = attached(&disk, 1).await?;
    must(left(&world)? == 1, "no device was made")?;
    drop(ready);
    must(left(&world)? == 0, "a device is left of an attach that was dropped when it was ready")?;
    // At whichever moment.
    for micros in (0..600).step_by(20) {
        let future = attached(&disk, 1);
        _ = tokio::time::timeout(Duration::from_micros(micros), future).await;
    }
    gone(&world).await?;
    // The lock is free.
    attached(&disk, 1).await?;
    Ok(())
}

async fn cancelled(world: World) -> Result<()> {
    let disk = disk(&world, "image")?;
    let cancel = CancellationToken::new();
    let begun = Block::new().begin(&disk, LIMIT, &cancel).await?;
    cancel.cancel();
    let result = begun.attach(Domain::default(), Vec::new()).await;
    ensure!(matches!(result, Err(Failure::Cancelled)), "{result:?}");
    gone(&world).await
}

/// A thread that was given up may end a moment later.
async fn gone(world: &World) -> Result<()> {
    for _ in 0..500 {
        if left(world)? == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("a device is left")
}

async fn locked(world: World) -> Result<()> {
    let disk = disk(&world, "image")?;
    let script = ". /etc/xen/scripts/locking.sh; claim_lock block; echo; read x; release_lock block";
    let mut holder =
        Command::new("bash").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = [0];
    std::io::Read::read_exact(holder.stdout.as_mut().context("a pipe")?, &mut said)?;
    let result = Block::new().begin(&disk, Duration::from_millis(50), &CancellationToken::new()).await;
    let waiting = attached(&disk, 1);
    let free = async {
        sleep(Duration::from_millis(20)).await;
        drop(holder.stdin.take());
    };
    let (later, ()) = tokio::join!(waiting, free);
    holder.wait()?;
    ensure!(matches!(result, Err(Failure::Locked { .. })), "{result:?}");
    later.map(drop).context("after the script")
}

/// One guest by the script and another by the handler, for one device: only one of them gets it.
async fn beside(world: World) -> Result<()> {
    let image = world.image("image", 1 << 20)?;
    let node = world.device(&image)?;
    let script = Path::new("/etc/xen/scripts/block");
    for round in 0..20 {
        for domid in [GUEST, OTHER] {
            world.backend("vbd", domid, &[("params", &node), ("mode", "w")]).await?;
        }
        let late = async {
            // So that either can be the first.
            sleep(Duration::from_millis(10 * round)).await;
            world.attach(OTHER, &Block::new()).await
        };
        let (by_script, by_handler) = tokio::join!(world.script(GUEST, script, Action::Add), late);
        let results = [by_script?.success(), by_handler?.is_ok()];
        ensure!(results[0] != results[1], "round {round}: script and handler got it: {results:?}");
        for domid in [GUEST, OTHER] {
            world.client.rm(&xs_client::Path::new(World::directory(domid))?).await?;
        }
    }
    Ok(())
}

/// Two guests by the handler, for one image: only one of them gets it.
async fn two(world: World) -> Result<()> {
    let image = world.image("image", 1 << 20)?.to_string_lossy().into_owned();
    let block = Block::new();
    for round in 0..50 {
        for domid in [GUEST, OTHER] {
            world.backend("vbd", domid, &[("params", &image), ("mode", "w")]).await?;
        }
        let (one, other) = tokio::join!(world.attach(GUEST, &block), world.attach(OTHER, &block));
        let results = [one?.is_ok(), other?.is_ok()];
        ensure!(results[0] != results[1], "round {round}: the guests got it: {results:?}");
        must(left(&world)? == 1, "a device is left of the attach that was refused")?;
        for domid in [GUEST, OTHER] {
            world.detach(domid).await?;
            world.client.rm(&xs_client::Path::new(World::directory(domid))?).await?;
        }
        gone(&world).await?;
    }
    Ok(())
}

async fn detaches(world: World) -> Result<()> {
    let disk = disk(&world, "image")?;
    let never = CancellationToken::new();
    let image = world.path("image");
    let attach = async || attached(&disk, 1).await?.keep().context("a file has something to undo");
    let undone = async |saved: Saved| anyhow::Ok(detach(saved, LIMIT, &never).await?);

    let saved = attach().await?;
    must(undone(saved.clone()).await? == Detached::Now, "it was not given back")?;
    must(undone(saved.clone()).await? == Detached::Before, "it was given back twice")?;
    // The number is another's by now: of another file, and of the same one.
    let other = world.image("other", 1 << 20)?;
    for file in [&other, &image] {
        let node = world.device(file)?;
        let result = undone(Saved { node: node.clone(), ..saved.clone() }).await?;
        let file = file.to_string_lossy().into_owned();
        ensure!(result == Detached::NotOurs { serves: file }, "{result:?}");
        losetup(&["--detach", &node])?;
    }
    // By the keys alone, with the image renamed and replaced.
    let keys = |saved: &Saved| {
        BTreeMap::from([("node".to_owned(), saved.node.clone()), ("params".to_owned(), disk.params.clone())])
    };
    let saved = attach().await?;
    fs::remove_file(&image)?;
    fs::File::create(&image)?.set_len(1 << 20)?;
    let by_keys = Saved::of(&keys(&saved)).context("a node")?;
    must(undone(by_keys).await? == Detached::Now, "the device of a file that was replaced is left")?;
    let saved = attach().await?;
    fs::rename(&image, world.path("renamed"))?;
    let by_keys = Saved::of(&keys(&saved)).context("a node")?;
    must(matches!(undone(by_keys).await?, Detached::NotOurs { .. }), "it was taken for another's")?;
    must(undone(saved).await? == Detached::Now, "the device of a file that was renamed is left")?;
    must(left(&world)? == 0, "a device is left")
}

async fn open_device(world: World) -> Result<()> {
    let disk = disk(&world, "image")?;
    let saved = attached(&disk, 1).await?.keep().context("a file has something to undo")?;
    let open = fs::File::open(&saved.node)?;
    let result = detach(saved, LIMIT, &CancellationToken::new()).await?;
    ensure!(result == Detached::WhenClosed, "{result:?}");
    drop(open);
    gone(&world).await
}

async fn named(world: World) -> Result<()> {
    let image = world.image("image", 1 << 20)?.to_string_lossy().into_owned();
    let params = format!("aio:{image}");
    world.backend("qdisk", OTHER, &[("params", &params), ("mode", "w")]).await?;
    world.backend("vbd", GUEST, &[("params", &image), ("mode", "w")]).await?;
    let failure = world.attach(GUEST, &Block::new()).await?.err().context("it was given twice")?;
    let expected = format!(
        "cannot give {image} read-write: it is the disk xvda of the guest 2 (guest-2), read-write; detach or unmount it \
         there, or give it read-only to all"
    );
    ensure!(failure.to_string() == expected, "{failure}");
    must(left(&world)? == 0, "a device is left")
}
