//! Cases about watches.

use std::time::Duration;

use anyhow::{Result, ensure};
use xs_client::{Error, Look, Path, Request, Watch};
use xs_proto::HEADER_LEN;

use super::{BACKLOG, World};

/// Waits until a watcher is told of a path.
async fn told_of(watch: &mut Watch, path: &Path) -> Result<()> {
    while !watch.changed().await?.paths.contains(path) {}
    Ok(())
}

pub(super) async fn a_watch_fires_at_first(world: World) -> Result<()> {
    for node in [world.base.clone(), world.node("none")] {
        let mut watch = world.client.watch(&node).await?;
        let changes = watch.changed().await?;
        ensure!(changes.paths.iter().eq([&node]) && !changes.overflowed, "{changes:?}");
    }
    Ok(())
}

pub(super) async fn a_watch_tells_what_is_below(world: World) -> Result<()> {
    let mut watch = world.client.watch(&world.base).await?;
    told_of(&mut watch, &world.base).await?;
    let node = world.node("a/b/c");
    world.client.write(&node, "x").await?;
    told_of(&mut watch, &node).await?;
    world.admin().write(&node, "y").await?;
    told_of(&mut watch, &node).await?;
    world.client.rm(&world.node("a")).await?;
    told_of(&mut watch, &world.node("a")).await
}

pub(super) async fn a_watch_with_a_depth_tells_no_deeper(world: World) -> Result<()> {
    let mut watch = world.client.watch_depth(&world.base, 1).await?;
    told_of(&mut watch, &world.base).await?;
    let (deep, child) = (world.node("a/deep"), world.node("child"));
    world.client.mkdir(&world.node("a")).await?;
    world.client.write(&deep, "x").await?;
    world.client.write(&child, "x").await?;
    loop {
        let changes = watch.changed().await?;
        ensure!(!changes.paths.contains(&deep), "{deep} is too deep");
        if changes.paths.contains(&child) {
            return Ok(());
        }
    }
}

/// What the server sends for a write that nobody watches is its reply, and not a byte more.
pub(super) async fn a_dropped_watch_is_gone_from_the_server(world: World) -> Result<()> {
    let node = world.node("watched");
    let mut watch = world.client.watch(&node).await?;
    told_of(&mut watch, &node).await?;
    drop(watch);
    loop {
        let before = world.client.stats().bytes_received;
        world.client.write(&node, "x").await?;
        // Whatever comes of the write is there with the next answer.
        world.client.write(&node, "x").await?;
        let received = world.client.stats().bytes_received - before;
        if received == 2 * (HEADER_LEN + "OK\0".len()) as u64 {
            return Ok(());
        }
    }
}

/// More of them than a guest may have at one time.
pub(super) async fn watches_come_and_go(world: World) -> Result<()> {
    for number in 0..150 {
        let node = world.node(number);
        let mut watch = world.client.watch(&node).await?;
        told_of(&mut watch, &node).await?;
    }
    Ok(())
}

pub(super) async fn a_watch_too_many_fails_alone(world: World) -> Result<()> {
    let mut watches = Vec::new();
    let error = loop {
        ensure!(watches.len() < 300, "there is no quota");
        // Of paths that have nothing in common.
        match world.client.watch(&world.node(format!("{0}/{0}", watches.len()))).await {
            Ok(watch) => watches.push(watch),
            Err(error) => break error,
        }
    };
    ensure!(error.is_quota(), "{error}");
    ensure!(watches.len() > 50, "only {} watches", watches.len());
    let last = watches.last_mut().expect("there are many");
    let node = last.path().clone();
    told_of(last, &node).await?;
    world.client.write(&node, "x").await?;
    told_of(last, &node).await?;
    Ok(())
}

pub(super) async fn domains_come_and_go(world: World) -> Result<()> {
    let domid = world.spare.expect("the case needs one");
    let (introduced, released) = (Path::new("@introduceDomain")?, Path::new("@releaseDomain")?);
    let mut coming = world.client.watch(&introduced).await?;
    let mut going = world.client.watch(&released).await?;
    told_of(&mut coming, &introduced).await?;
    told_of(&mut going, &released).await?;
    world.client.request(Request::Introduce { domid, gfn: 1, evtchn: 5 }).await?;
    told_of(&mut coming, &introduced).await?;
    assert!(world.client.is_introduced(domid).await?);
    world.client.request(Request::Release(domid)).await?;
    told_of(&mut going, &released).await?;
    assert!(!world.client.is_introduced(domid).await?);
    Ok(())
}

pub(super) async fn special_paths_fire_at_first(world: World) -> Result<()> {
    for path in [Path::new("@introduceDomain")?, Path::new("@releaseDomain")?] {
        let mut watch = world.client.watch(&path).await?;
        told_of(&mut watch, &path).await?;
    }
    Ok(())
}

pub(super) async fn a_watcher_that_never_looks_holds_up_nobody(world: World) -> Result<()> {
    let mut idle = world.client.watch(&world.base).await?;
    let mut awake = world.client.watch(&world.base).await?;
    let nodes: Vec<Path> = (0..=BACKLOG).map(|number| world.node(number)).collect();
    for node in &nodes {
        world.client.write(node, "x").await?;
        told_of(&mut awake, node).await?;
    }
    let changes = idle.changed().await?;
    ensure!(changes.overflowed && changes.paths.is_empty(), "{} paths", changes.paths.len());
    Ok(())
}

pub(super) async fn what_is_waited_for_comes(world: World) -> Result<()> {
    let node = &world.node("state");
    let is_four =
        |look: Look| async move { Ok::<_, Error>(look.read(node).await?.filter(|value| value == "4")) };
    let waiting = world.client.wait_for(Duration::from_secs(30), is_four);
    let writing = async {
        for state in 1..=4 {
            world.client.write(node, state.to_string()).await?;
        }
        Ok(())
    };
    let (state, ()) = tokio::try_join!(waiting, writing)?;
    assert_eq!(state, "4");
    Ok(())
}
