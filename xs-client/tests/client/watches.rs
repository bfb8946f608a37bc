//! Watches: shared, dropped, neglected, refused.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::select_all;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;
use xs_client::{Client, Config, DomId, Error, Op, Path, Watch};
use xs_store::Store;

use crate::support::{client, path, watched_client};

async fn next(watch: &mut Watch) -> Vec<Path> {
    let changes = timeout(Duration::from_secs(1), watch.changed()).await.expect("fires").unwrap();
    assert!(!changes.overflowed);
    changes.paths.into_iter().collect()
}

async fn is_quiet(watch: &mut Watch) -> bool {
    timeout(Duration::from_millis(20), watch.changed()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn it_fires_at_first_and_then_for_changes_below() {
    let client = client();
    let mut watch = client.watch(&path("/a")).await.unwrap();
    assert_eq!(next(&mut watch).await, [path("/a")]);
    assert!(is_quiet(&mut watch).await, "once");
    client.write(&path("/a/b"), "1").await.unwrap();
    assert_eq!(next(&mut watch).await, [path("/a/b")]);
    client.write(&path("/ab"), "1").await.unwrap();
    client.write(&path("/b"), "1").await.unwrap();
    assert!(is_quiet(&mut watch).await, "neighbours are nothing to it");
    client.rm(&path("/a")).await.unwrap();
    assert_eq!(next(&mut watch).await, [path("/a")]);
}

/// Several watches as one stream; each ends behind its error.
#[tokio::test(start_paused = true)]
async fn watches_are_streams_that_can_be_joined() {
    let (client, proxy, _store) = watched_client(Config { reconnect: None, ..Config::default() });
    let (a, b) = (path("/a"), path("/b"));
    let streams =
        [client.watch(&a).await.unwrap().into_stream(), client.watch(&b).await.unwrap().into_stream()];
    let mut watches = select_all(streams);
    let mut fired = BTreeSet::new();
    for _ in 0..2 {
        fired.extend(watches.next().await.unwrap().unwrap().paths);
    }
    assert_eq!(fired, BTreeSet::from([a, b.clone()]));
    client.write(&b, "1").await.unwrap();
    assert_eq!(watches.next().await.unwrap().unwrap().paths, BTreeSet::from([b]));
    proxy.inject(&[0xff; 16]);
    let ends = timeout(Duration::from_secs(1), watches.collect::<Vec<_>>()).await.expect("they end");
    assert_eq!(ends.len(), 2);
    assert!(ends.iter().all(|end| end.as_ref().is_err_and(Error::is_disconnected)), "{ends:?}");
}

/// Changes that came while nobody looked are there at the next look, each path once.
#[tokio::test(start_paused = true)]
async fn changes_wait_to_be_looked_at() {
    let client = client();
    let mut watch = client.watch(&path("/a")).await.unwrap();
    for _ in 0..100 {
        client.write(&path("/a/b"), "1").await.unwrap();
        client.write(&path("/a/c"), "1").await.unwrap();
    }
    assert_eq!(next(&mut watch).await, ["/a", "/a/b", "/a/c"].map(path));
    assert!(is_quiet(&mut watch).await);
    // What a dropped look did not return, the next one does.
    assert!(watch.changed().now_or_never().is_none());
    client.write(&path("/a/b"), "2").await.unwrap();
    assert_eq!(next(&mut watch).await, [path("/a/b")]);
}

/// A hundred watchers of one path, made at once and one after another: one WATCH, one UNWATCH.
#[tokio::test(start_paused = true)]
async fn many_watchers_share_one_watch() {
    let (client, proxy, _store) = watched_client(Config::default());
    let node = path("/a");
    let mut watches: Vec<Watch> =
        join_all((0..50).map(|_| client.watch(&node))).await.into_iter().map(Result::unwrap).collect();
    for _ in 0..50 {
        watches.push(client.watch(&node).await.unwrap());
    }
    assert_eq!(proxy.count(Op::WATCH), 1);
    for watch in &mut watches {
        assert_eq!(next(watch).await, [path("/a")], "each has its first event");
    }
    client.write(&path("/a/b"), "1").await.unwrap();
    for watch in &mut watches {
        assert_eq!(next(watch).await, [path("/a/b")]);
    }
    let mut last = watches.pop().unwrap();
    drop(watches);
    client.write(&path("/a/c"), "1").await.unwrap();
    assert_eq!(next(&mut last).await, [path("/a/c")], "the last one still hears");
    assert_eq!(proxy.count(Op::UNWATCH), 0);
    drop(last);
    client.read_opt(&node).await.unwrap();
    assert_eq!(proxy.count(Op::UNWATCH), 1);
    let mut again = client.watch(&node).await.unwrap();
    assert_eq!(proxy.count(Op::WATCH), 2);
    assert_eq!(next(&mut again).await, [path("/a")]);
}

/// A guest may have 128 watches. A thousand that are dropped leave none.
#[tokio::test(start_paused = true)]
async fn a_dropped_watch_is_removed_from_the_server() {
    let store = Store::new();
    store.introduce(DomId(1));
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    for number in 0..1000 {
        drop(guest.watch(&path(format!("n/{number}"))).await.unwrap());
        // One that is dropped before the store has confirmed it.
        let early = path(format!("early/{number}"));
        assert!(guest.watch(&early).now_or_never().is_none());
    }
    let kept = join_all((0..100).map(|number| {
        let (guest, node) = (guest.clone(), path(format!("kept/{number}")));
        async move { guest.watch(&node).await }
    }));
    assert!(kept.await.iter().all(Result::is_ok));
}

/// One watch too many is refused, alone, and can be had once another is gone.
#[tokio::test(start_paused = true)]
async fn too_many_watches() {
    let store = Store::new();
    store.introduce(DomId(1));
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    let mut watches = Vec::new();
    let (refused, error) = loop {
        let node = path(format!("n/{}", watches.len()));
        match guest.watch(&node).await {
            Ok(watch) => watches.push(watch),
            Err(error) => break (node, error),
        }
        assert!(watches.len() < 200);
    };
    assert!(error.is_quota() && error.to_string().starts_with("WATCH of n/"), "{error}");
    assert!(guest.watch(&refused).await.is_err());
    // One more of a path that is watched already costs nothing.
    let shared = guest.watch(&path("n/0")).await.unwrap();
    watches.pop();
    let mut watch = guest.watch(&refused).await.unwrap();
    assert_eq!(next(&mut watch).await, [refused]);
    drop(shared);
}

/// A watcher that never looks holds up nobody, and is told in the end that it missed something.
#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_look() {
    let (client, _proxy, _store) = watched_client(Config { watch_backlog: 16, ..Config::default() });
    let mut lazy = client.watch(&path("/a")).await.unwrap();
    let mut awake = client.watch(&path("/a")).await.unwrap();
    next(&mut awake).await;
    for number in 0..1000 {
        let node = path(format!("/a/{number}"));
        client.write(&node, "1").await.unwrap();
        assert_eq!(next(&mut awake).await, [node]);
    }
    let changes = lazy.changed().await.unwrap();
    assert!(changes.overflowed && changes.paths.is_empty(), "{changes:?}");
    client.write(&path("/a/b"), "1").await.unwrap();
    assert_eq!(next(&mut lazy).await, [path("/a/b")], "looking makes room again");
}

/// Whoever joins a watch that is there already is told at once, without a word to the store.
#[tokio::test(start_paused = true)]
async fn who_joins_later_is_told_at_once() {
    let (client, proxy, _store) = watched_client(Config::default());
    let mut first = client.watch(&path("/a")).await.unwrap();
    next(&mut first).await;
    proxy.hold(true);
    let mut second = client.watch(&path("/a")).await.unwrap();
    assert_eq!(next(&mut second).await, [path("/a")]);
    assert!(is_quiet(&mut first).await, "that is no event for the first");
}

/// A watch that is dropped while its WATCH is under way, and one of the same path right after it:
/// the second has a watch of its own, and hears.
#[tokio::test(start_paused = true)]
async fn a_watch_dropped_while_it_is_made() {
    let (client, proxy, _store) = watched_client(Config::default());
    let node = path("/a");
    proxy.hold(true);
    assert!(timeout(Duration::from_secs(1), client.watch(&node)).await.is_err());
    tokio::task::yield_now().await;
    let (second, ()) = tokio::join!(client.watch(&node), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.hold(false);
    });
    let mut second = second.unwrap();
    assert_eq!(next(&mut second).await, [path("/a")]);
    client.write(&path("/a/b"), "1").await.unwrap();
    assert_eq!(next(&mut second).await, [path("/a/b")]);
    assert_eq!((proxy.count(Op::WATCH), proxy.count(Op::UNWATCH)), (2, 1));
}

/// Relative paths and special ones come back as they were asked for.
#[tokio::test(start_paused = true)]
async fn forms_of_paths() {
    let store = Store::new();
    let client = Client::over(store.connect(DomId::DOM0), Config::default());
    let mut relative = client.watch(&path("backend")).await.unwrap();
    let mut special = client.watch(&path("@introduceDomain")).await.unwrap();
    assert_eq!(next(&mut relative).await, [path("backend")]);
    assert_eq!(next(&mut special).await, [path("@introduceDomain")]);
    client.write(&path("/local/domain/0/backend/vbd"), "").await.unwrap();
    assert_eq!(next(&mut relative).await, [path("backend/vbd")]);
    store.introduce(DomId(7));
    assert_eq!(next(&mut special).await, [path("@introduceDomain")]);
}

/// A depth is kept whether the server knows of it (this one does) or not (see `connection`).
#[tokio::test(start_paused = true)]
async fn a_depth_says_how_far_below_changes_matter() {
    let client = client();
    let [mut alone, mut children, mut all] = [Some(0), Some(1), None].map(|depth| (depth, None::<Watch>));
    for (depth, watch) in [&mut alone, &mut children, &mut all] {
        let made = match depth {
            Some(depth) => client.watch_depth(&path("/a"), *depth).await,
            None => client.watch(&path("/a")).await,
        };
        assert_eq!(next(watch.insert(made.unwrap())).await, [path("/a")]);
    }
    for node in ["/a/b/c", "/a/b", "/a"] {
        client.write(&path(node), "1").await.unwrap();
    }
    assert_eq!(next(&mut alone.1.unwrap()).await, [path("/a")]);
    assert_eq!(next(&mut children.1.unwrap()).await, ["/a", "/a/b"].map(path));
    assert_eq!(next(&mut all.1.unwrap()).await, ["/a", "/a/b", "/a/b/c"].map(path));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_domain_is_told_with_its_number_or_without() {
    let store = Store::new();
    let client = Client::over(store.connect(DomId::DOM0), Config::default());
    let release = path("@releaseDomain");
    let mut plain = client.watch(&release).await.unwrap();
    let mut which = client.watch_depth(&release, 1).await.unwrap();
    for watch in [&mut plain, &mut which] {
        assert_eq!(next(watch).await, std::slice::from_ref(&release));
    }
    store.introduce(DomId(7));
    store.release(DomId(7));
    assert_eq!(next(&mut plain).await, [release]);
    assert_eq!(next(&mut which).await, [path("@releaseDomain/7")]);
}

/// As the documentation of `watch_depth` has it: what a write creates on its way tells nobody.
#[tokio::test(start_paused = true)]
async fn parents_that_a_write_creates_do_not_fire() {
    let client = client();
    let mut shallow = Vec::new();
    for depth in 0..=1 {
        let mut watch = client.watch_depth(&path("/a"), depth).await.unwrap();
        watch.changed().await.unwrap();
        shallow.push(watch);
    }
    let mut all = client.watch(&path("/a")).await.unwrap();
    all.changed().await.unwrap();
    client.write(&path("/a/b/c"), "1").await.unwrap();
    assert!(all.changed().await.unwrap().paths.iter().eq([&path("/a/b/c")]));
    for watch in &mut shallow {
        timeout(Duration::from_secs(1), watch.changed()).await.unwrap_err();
    }
    client.mkdir(&path("/a/d")).await.unwrap();
    assert!(shallow[1].changed().await.unwrap().paths.iter().eq([&path("/a/d")]));
}
