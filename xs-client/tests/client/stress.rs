//! Many tasks that give up at any moment: what they dropped is gone on the server, too.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use futures_util::future::join_all;
use tokio::sync::Barrier;
use xs_client::{Client, Config, DomId, Error};
use xs_store::Store;

use crate::support::path;

/// Polls a future so many times, with turns for others in between, and drops it.
async fn give_up_after<T>(polls: usize, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// A guest's quotas, ten transactions and 128 watches, are what would be used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_what_was_dropped() {
    let store = Store::new();
    store.introduce(DomId(1));
    let guest =
        Client::over(store.connect(DomId(1)), Config { window: 8, transactions: 9, ..Config::default() });
    let tasks = (0..8).map(|seed| {
        let (guest, mut random) = (guest.clone(), fastrand::Rng::with_seed(seed));
        tokio::spawn(async move {
            for _ in 0..1000 {
                let (polls, node) = (random.usize(1..12), path(format!("n/{}", random.u8(..8))));
                match random.u8(..4) {
                    0 => give_up_after(polls, guest.read(&node)).await,
                    1 => give_up_after(polls, guest.watch(&node)).await,
                    2 => {
                        let mut watch = guest.watch(&node).await.unwrap();
                        give_up_after(polls, watch.changed()).await;
                    }
                    _ => {
                        let body = |_| std::future::pending::<Result<(), Error>>();
                        give_up_after(polls, guest.transaction(body)).await;
                    }
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let watches = join_all((0..120).map(|number| {
        let (guest, node) = (guest.clone(), path(format!("free/{number}")));
        async move { guest.watch(&node).await }
    }));
    assert!(watches.await.iter().all(Result::is_ok));
    let all_open = &Barrier::new(9);
    let transactions = join_all((0..9).map(|_| {
        guest.transaction(move |_| async move {
            all_open.wait().await;
            Ok::<_, Error>(())
        })
    }));
    for outcome in transactions.await {
        outcome.unwrap();
    }
}
