//! What a connection says of itself.

use std::time::Duration;

use tokio::time::sleep;
use xs_client::Config;

use crate::support::{client, path, watched_client};

#[tokio::test(start_paused = true)]
async fn the_numbers_are_those_of_what_was_done() {
    let client = client();
    client.write(&path("/x"), "v").await.unwrap();
    let watch = client.watch(&path("/x")).await.unwrap();
    let (other, same) = (client.watch(&path("/x")).await.unwrap(), client.watch(&path("/y")).await.unwrap());
    client.write(&path("/x"), "v").await.unwrap();
    client.write(&path("/x"), "v").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let stats = client.stats();
    assert_eq!((stats.requests, stats.in_flight, stats.watches), (5, 0, 2));
    // First each watch fires once, then /x changes twice for two watchers that do not look.
    assert_eq!((stats.changes, stats.coalesced, stats.overflows), (7, 4, 0));
    assert!(stats.bytes_sent >= 5 * 16 && stats.bytes_received >= 5 * 16, "{stats:?}");
    drop((watch, other, same));
    sleep(Duration::from_secs(1)).await;
    assert_eq!((client.stats().watches, client.stats().requests), (0, 7));
}

#[tokio::test(start_paused = true)]
async fn conflicts_and_overflows_are_counted() {
    let (client, proxy, _store) = watched_client(Config { watch_backlog: 2, ..Config::default() });
    proxy.conflict(3);
    client.transaction(|tx| async move { tx.write(&path("/x"), "v").await }).await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.transactions, stats.conflicts), (4, 3));
    let _watch = client.watch(&path("/w")).await.unwrap();
    for node in 0..5 {
        client.write(&path(format!("/w/{node}")), "v").await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(client.stats().overflows, 1);
}

/// Twenty at once, over a store that lets a guest have nine.
#[tokio::test(start_paused = true)]
async fn transactions_wait_for_their_turn_and_not_for_the_quota() {
    let store = xs_store::Store::new();
    store.introduce(xs_client::DomId(7));
    let dom0 = xs_client::Client::over(store.connect(xs_client::DomId::DOM0), Config::default());
    let home = path("/local/domain/7");
    dom0.mkdir(&home).await.unwrap();
    let own = xs_client::Permissions::owned_by(xs_client::DomId(7), xs_client::Access::None);
    dom0.set_perms(&home, own).await.unwrap();
    let guest = xs_client::Client::over(store.connect(xs_client::DomId(7)), Config::default());
    let transactions = (0..20).map(|number| {
        let (guest, node) = (guest.clone(), path(format!("node{number}")));
        tokio::spawn(async move {
            let outcome = guest.transaction(|tx| {
                let node = node.clone();
                async move {
                    tx.read_opt(&node).await?;
                    sleep(Duration::from_millis(10)).await;
                    tx.write(&node, "v").await
                }
            });
            outcome.await
        })
    });
    for transaction in transactions.collect::<Vec<_>>() {
        transaction.await.unwrap().unwrap();
    }
    assert_eq!(guest.directory(&home).await.unwrap().len(), 20);
}
