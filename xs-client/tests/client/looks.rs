//! Waiting for what the store says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use xs_client::{Config, Error, Look, Op, Path};

use crate::support::{client, path, watched_client};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_store_says_so() {
    let client = client();
    let (wanted, writer) = (path("/state"), client.clone());
    let waiting = client.wait_for(LONG, |look: Look| {
        let wanted = &wanted;
        async move { Ok::<_, Error>(look.read(wanted).await?.filter(|value| &value[..] == b"4")) }
    });
    let writing = async {
        for state in ["1", "2", "3", "4"] {
            sleep(Duration::from_secs(1)).await;
            writer.write(&path("/state"), state).await.unwrap();
        }
    };
    let (found, ()) = tokio::join!(waiting, writing);
    assert_eq!(found.unwrap(), "4");
}

#[tokio::test(start_paused = true)]
async fn what_holds_already_is_not_waited_for() {
    let client = client();
    client.write(&path("/x"), "v").await.unwrap();
    let value =
        client.wait_for(Duration::from_millis(1), |look: Look| async move { look.read(&path("/x")).await });
    assert_eq!(timeout(LONG, value).await.unwrap().unwrap(), "v");
}

/// What is read may depend on what was read before; what is read no more is watched no more.
#[tokio::test(start_paused = true)]
async fn exactly_what_was_read_is_watched() {
    let (client, proxy, _store) = watched_client(Config::default());
    client.write(&path("/which"), "a").await.unwrap();
    let looks = AtomicUsize::new(0);
    let waiting = client.wait_for(LONG, |look: Look| {
        looks.fetch_add(1, Ordering::Relaxed);
        async move {
            let which = look.read(&path("/which")).await?.unwrap();
            let node = path(format!("/{}", String::from_utf8_lossy(&which)));
            look.read(&node).await
        }
    });
    let writer = client.clone();
    let writing = async {
        sleep(Duration::from_secs(1)).await;
        writer.write(&path("/which"), "b").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(proxy.count(Op::UNWATCH), 1, "nobody reads /a any more");
        let before = looks.load(Ordering::Relaxed);
        writer.write(&path("/unrelated"), "v").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(looks.load(Ordering::Relaxed), before);
        writer.write(&path("/b"), "v").await.unwrap();
    };
    let (found, ()) = tokio::join!(waiting, writing);
    assert_eq!(found.unwrap(), "v");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(proxy.count(Op::WATCH), proxy.count(Op::UNWATCH), "no watch is left");
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_vain_says_where_it_looked() {
    let (client, proxy, _store) = watched_client(Config::default());
    let look = |look: Look| async move {
        look.directory(&path("/d")).await?;
        look.read(&path("/never")).await
    };
    let error = client.wait_for(LONG, look).await.unwrap_err();
    assert_eq!(error.to_string(), "not satisfied within 60s by what the store says at /d, /never");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(proxy.count(Op::WATCH), proxy.count(Op::UNWATCH), "no watch is left");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_closure_is_the_outcome() {
    let client = client();
    let fail = |_: Look| async { "//".parse::<Path>().map(Some).map_err(Error::from) };
    assert!(matches!(client.wait_for(LONG, fail).await, Err(Error::Path(_))));
}
