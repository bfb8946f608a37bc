//! Cases about transactions.

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use xs_client::Error;

use super::World;

pub(super) async fn a_conflict_is_tried_again(world: World) -> Result<()> {
    let (client, node) = (&world.client, &world.node("contended"));
    client.write(node, "ours").await?;
    let mut attempts = 0;
    let add = |tx: xs_client::Transaction| {
        attempts += 1;
        let interfere = attempts == 1;
        async move {
            let value = tx.read(node).await?;
            if interfere {
                client.write(node, "theirs").await?;
            }
            tx.write(node, [&value[..], b" and ours"].concat()).await
        }
    };
    client.transaction::<_, Error, _>(add).await?;
    assert_eq!(attempts, 2);
    assert_eq!(client.read(node).await?, "theirs and ours");
    Ok(())
}

pub(super) async fn nothing_is_seen_before_the_commit(world: World) -> Result<()> {
    let (client, node) = (&world.client, &world.node("new"));
    let outside = client
        .transaction::<_, Error, _>(|tx| async move {
            tx.write(node, "new").await?;
            assert_eq!(tx.read(node).await?, "new");
            client.read_opt(node).await
        })
        .await?;
    assert_eq!(outside, None);
    assert_eq!(client.read(node).await?, "new");
    Ok(())
}

pub(super) async fn nothing_is_left_of_an_abort(world: World) -> Result<()> {
    let (client, node) = (&world.client, &world.node("new"));
    let given_up: Result<()> = client
        .transaction(|tx| async move {
            tx.write(node, "new").await?;
            bail!("thought better of it")
        })
        .await;
    assert_eq!(given_up.unwrap_err().to_string(), "thought better of it");
    assert_eq!(client.read_opt(node).await?, None);
    Ok(())
}

pub(super) async fn counters_that_conflict_count_right(world: World) -> Result<()> {
    const TASKS: usize = 10;
    let node = world.node("counter");
    world.client.write(&node, "0").await?;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (client, node) = (world.client.clone(), node.clone());
        tasks.spawn(async move {
            let node = &node;
            client
                .transaction::<_, anyhow::Error, _>(|tx| async move {
                    let count: usize = std::str::from_utf8(&tx.read(node).await?)?.parse()?;
                    Ok(tx.write(node, (count + 1).to_string()).await?)
                })
                .await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    assert_eq!(world.client.read(&node).await?, TASKS.to_string());
    Ok(())
}
