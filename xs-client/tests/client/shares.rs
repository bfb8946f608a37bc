//! Many watches with a common ancestor: one on the server, and every watcher hears what it would.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use xs_client::{Access, Client, Config, DomId, Op, Path, Permissions, Request, Watch};
use xs_store::Store;

use crate::door;
use crate::support::{path, watched_client};

const MANY: usize = 400;

fn node(number: usize) -> Path {
    path(format!("/local/domain/0/backend/vif/{number}/0/state"))
}

async fn watch_many(client: &Client) -> Vec<Watch> {
    let nodes: Vec<Path> = (0..MANY).map(node).collect();
    let watches = join_all(nodes.iter().map(|node| client.watch(node))).await;
    watches.into_iter().map(Result::unwrap).collect()
}

/// What a watch tells within a second.
async fn next(watch: &mut Watch) -> Option<Vec<String>> {
    let changes = timeout(Duration::from_secs(1), watch.changed()).await.ok()?.unwrap();
    Some(changes.paths.iter().map(ToString::to_string).collect())
}

async fn settled(client: &Client) {
    sleep(Duration::from_secs(1)).await;
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn they_become_one_and_each_hears_what_is_its_own() {
    let (client, proxy, _store) = watched_client(Config::default());
    let mut watches = watch_many(&client).await;
    settled(&client).await;
    assert_eq!(client.stats().watches, 1);
    assert_eq!(proxy.count(Op::WATCH) - proxy.count(Op::UNWATCH), 1);
    for (number, watch) in watches.iter_mut().enumerate() {
        assert_eq!(next(watch).await, Some(vec![node(number).to_string()]), "its first event, once");
    }
    client.write(&node(7), "4").await.unwrap();
    client.write(&node(8).join("below").unwrap(), "4").await.unwrap();
    // The root of one device goes, and with it what is watched below.
    client.rm(&path("/local/domain/0/backend/vif/7")).await.unwrap();
    client.write(&path("/local/domain/0/backend/vif"), "").await.unwrap();
    assert_eq!(next(&mut watches[7]).await, Some(vec![node(7).to_string()]));
    let own = node(8).to_string();
    assert_eq!(next(&mut watches[8]).await, Some(vec![own.clone(), format!("{own}/below")]));

    // A late one costs nothing, and has its first event all the same.
    let before = proxy.count(Op::WATCH);
    let mut late = client.watch(&path("/local/domain/0/backend/vif/late/0/state")).await.unwrap();
    assert_eq!(next(&mut late).await.map(|paths| paths.len()), Some(1));
    assert_eq!(proxy.count(Op::WATCH), before);

    drop((watches, late));
    settled(&client).await;
    assert_eq!(proxy.count(Op::WATCH), proxy.count(Op::UNWATCH), "none is left");
}

/// Where most of what changes below the ancestor is of no interest, each has its own again.
#[tokio::test(start_paused = true)]
async fn they_part_when_it_does_not_pay() {
    let (client, proxy, store) = watched_client(Config::default());
    let mut watches = watch_many(&client).await;
    settled(&client).await;
    let writer = Client::over(store.connect(DomId::DOM0), Config::default());
    let strange = path("/local/domain/0/backend/vif/strange");
    for _ in 0..300 {
        writer.write(&strange, "").await.unwrap();
    }
    settled(&client).await;
    assert_eq!(client.stats().watches, MANY as u64);
    assert_eq!(proxy.count(Op::WATCH) - proxy.count(Op::UNWATCH), MANY);
    for watch in &mut watches {
        next(watch).await;
    }
    writer.write(&node(7), "4").await.unwrap();
    assert_eq!(next(&mut watches[7]).await, Some(vec![node(7).to_string()]));
    assert_eq!(next(&mut watches[8]).await, None);
    drop(watches);
    settled(&client).await;
    assert_eq!(proxy.count(Op::WATCH), proxy.count(Op::UNWATCH));
}

/// Whatever changes while one watch takes the place of many, or gives it back, is heard.
#[tokio::test(start_paused = true)]
async fn nothing_is_missed_in_between() {
    let (client, _proxy, store) = watched_client(Config::default());
    let writer = Client::over(store.connect(DomId::DOM0), Config::default());
    let nodes: Vec<Path> = (0..MANY).map(node).collect();
    let strange = path("/local/domain/0/backend/vif/strange");
    let watching = async {
        let mut watches = join_all(nodes.iter().map(|node| client.watch(node))).await;
        for round in 0..20 {
            for (number, watch) in watches.iter_mut().enumerate() {
                let watch = watch.as_mut().unwrap();
                writer.write(&nodes[number], format!("{round}")).await.unwrap();
                writer.write(&strange, "").await.unwrap();
                assert!(next(watch).await.is_some(), "round {round}, watch {number}");
                while let Some(Ok(_)) = futures_util::FutureExt::now_or_never(watch.changed()) {}
            }
        }
    };
    watching.await;
}

/// A way to a store that can be held: what comes back, and the watch of the ancestor on its way there.
struct Held {
    requests: watch::Sender<bool>,
    replies: watch::Sender<bool>,
}

impl Held {
    fn over(store: &Store) -> (DuplexStream, Self) {
        let (near, far) = tokio::io::duplex(4096);
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (mut from_store, mut to_store) = tokio::io::split(store.connect(DomId::DOM0));
        let (requests, mut may_pass) = watch::channel(false);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            while from_client.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                if bytes.windows(13).any(|found| found == b"/backend/vif\0") {
                    _ = may_pass.wait_for(|may| *may).await;
                }
                to_store.write_all(&bytes).await.unwrap();
                bytes.clear();
            }
        });
        let (replies, mut may_pass) = watch::channel(true);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            loop {
                _ = may_pass.wait_for(|may| *may).await;
                if !from_store.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                    return;
                }
                _ = may_pass.wait_for(|may| *may).await;
                to_client.write_all(&bytes).await.unwrap();
                bytes.clear();
            }
        });
        (near, Self { requests, replies })
    }
}

/// A store merges what it has to say of the ancestor with the initial event of its watch, if that waits.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_ancestor_is_heard_while_its_watch_is_made() {
    for gone in ["/local/domain/0/backend/vif", "/local/domain/0/backend", "/local"] {
        let store = Store::new();
        let writer = Client::over(store.connect(DomId::DOM0), Config::default());
        let (stream, held) = Held::over(&store);
        let client = Client::over(stream, Config::default());
        let flood = client.watch(&path("/flood")).await.unwrap();
        let mut watches = Vec::new();
        for number in 0..255 {
            writer.write(&node(number), "4").await.unwrap();
            watches.push(client.watch(&node(number)).await.unwrap());
        }
        for watch in &mut watches {
            next(watch).await;
        }
        // The client is slow, and much waits for it already.
        held.replies.send_replace(false);
        for number in 0..100 {
            writer.write(&path(format!("/flood/{number:0>2000}")), "").await.unwrap();
        }
        held.requests.send_replace(true);
        sleep(Duration::from_secs(1)).await;
        writer.rm(&path(gone)).await.unwrap();
        held.replies.send_replace(true);
        settled(&client).await;
        assert_eq!(client.stats().watches, 2, "one for all, and one for what is no device");
        for (number, watch) in watches.iter_mut().enumerate() {
            assert_eq!(next(watch).await, Some(vec![node(number).to_string()]), "{gone}");
        }
        drop(flood);
    }
}

#[tokio::test(start_paused = true)]
async fn one_watch_is_made_again_on_another_connection() {
    let (client, door, store) = door::client(Config::default()).await;
    let mut watches = watch_many(&client).await;
    settled(&client).await;
    for watch in &mut watches {
        next(watch).await;
    }
    door.shut();
    sleep(Duration::from_secs(1)).await;
    door.open(&store);
    for (number, watch) in watches.iter_mut().enumerate() {
        assert_eq!(next(watch).await, Some(vec![node(number).to_string()]));
    }
    assert_eq!(client.stats().watches, 1);
}

/// A quota that leaves no room for the watch of the ancestor leaves things as they are.
#[tokio::test(start_paused = true)]
async fn a_refused_watch_of_the_ancestor_changes_nothing() {
    const LIMIT: usize = 256;
    let store = Store::new();
    let admin = Client::over(store.connect(DomId::DOM0), Config::default());
    // To reach a quota is too much.
    let command = ["quota", "set", "watches", &(LIMIT + 1).to_string()].map(|word| word.to_owned().into());
    admin.request(Request::Control(command.into())).await.unwrap();
    store.introduce(DomId(1));
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    let mut watches = Vec::new();
    for number in 0..LIMIT {
        watches.push(guest.watch(&path(format!("device/vif/{number}/state"))).await.unwrap());
    }
    assert!(guest.watch(&path("device/vif/more/state")).await.unwrap_err().is_quota());
    settled(&guest).await;
    assert_eq!(guest.stats().watches, LIMIT as u64);
    next(&mut watches[7]).await;
    admin.write(&path("/local/domain/1"), "").await.unwrap();
    let owned = Permissions::owned_by(DomId(1), Access::None);
    admin.set_perms(&path("/local/domain/1"), owned).await.unwrap();
    guest.write(&path("device/vif/7/state"), "1").await.unwrap();
    assert_eq!(next(&mut watches[7]).await, Some(vec!["device/vif/7/state".to_owned()]));
}

/// A quota that leaves no room for all of their own: the others are served as before.
#[tokio::test(start_paused = true)]
async fn those_that_cannot_part_stay_together() {
    const ROOM: usize = 100;
    let store = Store::new();
    let admin = Client::over(store.connect(DomId::DOM0), Config::default());
    store.introduce(DomId(1));
    admin.set_quota(Some(DomId(1)), "watches", 1000).await.unwrap();
    admin.write(&path("/local/domain/1"), "").await.unwrap();
    let owned = Permissions::owned_by(DomId(1), Access::None);
    admin.set_perms(&path("/local/domain/1"), owned).await.unwrap();
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    let nodes: Vec<Path> = (0..MANY).map(|number| path(format!("device/vif/{number}/state"))).collect();
    let mut watches = Vec::new();
    for node in &nodes {
        watches.push(guest.watch(node).await.unwrap());
    }
    settled(&guest).await;
    assert_eq!(guest.stats().watches, 1);
    admin.set_quota(Some(DomId(1)), "watches", ROOM as u32).await.unwrap();
    let writer = Client::over(store.connect(DomId(1)), Config::default());
    // Twice, for what was refused is tried again.
    for round in 0..2 {
        for _ in 0..300 {
            writer.write(&path("device/vif/strange"), "").await.unwrap();
        }
        settled(&guest).await;
        let taken = guest.stats().watches;
        assert!(taken > 50 && taken < ROOM as u64, "{taken} watches in round {round}");
        for (number, watch) in watches.iter_mut().enumerate() {
            while next(watch).await.is_some() {}
            writer.write(&nodes[number], "4").await.unwrap();
            assert_eq!(next(watch).await, Some(vec![nodes[number].to_string()]), "in round {round}");
        }
    }
    drop(watches);
    settled(&guest).await;
    assert_eq!(guest.stats().watches, 0);
    admin.set_quota(Some(DomId(1)), "watches", 2).await.unwrap();
    let _one = guest.watch(&nodes[0]).await.unwrap();
}
