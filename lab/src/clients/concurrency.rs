//! Cases about many callers of one client.

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use xs_client::{Reply, Request};

use super::World;

/// Nodes that are read; few enough for a guest.
const NODES: usize = 50;

async fn write_nodes(world: &World) -> Result<()> {
    let write = |node| Request::Write { path: world.node(node), value: format!("value {node}").into() };
    world.client.all((0..NODES).map(write).collect()).await?;
    Ok(())
}

async fn callers(world: World, count: usize) -> Result<()> {
    write_nodes(&world).await?;
    let mut reads = JoinSet::new();
    for caller in 0..count {
        let (client, path) = (world.client.clone(), world.node(caller % NODES));
        reads.spawn(async move { (caller, client.read(&path).await) });
    }
    let mut answered = 0;
    while let Some(read) = reads.join_next().await {
        let (caller, value) = read?;
        ensure!(value? == format!("value {}", caller % NODES), "caller {caller} got another's value");
        answered += 1;
    }
    assert_eq!(answered, count);
    Ok(())
}

pub(super) async fn callers_64(world: World) -> Result<()> {
    callers(world, 64).await
}

pub(super) async fn callers_1000(world: World) -> Result<()> {
    callers(world, 1000).await
}

pub(super) async fn a_batch_is_answered_in_order(world: World) -> Result<()> {
    write_nodes(&world).await?;
    let order: Vec<usize> = (0..200).map(|number| number * 7 % NODES).collect();
    let reads = order.iter().map(|node| Request::Read(world.node(node))).collect();
    for (node, reply) in order.iter().zip(world.client.all(reads).await?) {
        assert_eq!(reply, Reply::Value(format!("value {node}").into()));
    }
    Ok(())
}
