//! One daemon for a domain, by a node in its home.

use std::time::Duration;

use xen_aodevice::devd::{Claim, DaemonError, holder};
use xs_client::{Client, Config};

use super::world::*;

const NODE: &str = "/local/domain/1/libxl/xendev-devd";
const AT_ONCE: Duration = Duration::ZERO;

#[tokio::test(start_paused = true)]
async fn a_domain_has_one_daemon_whatever_that_is_started_with() {
    let world = World::new().await;
    let connect = || Client::over(world.store.connect(DRIVER), Config::default());
    let (first, second) = (connect(), connect());
    assert_eq!(holder(&second).await.unwrap(), None);
    let claim = Claim::take(&first, AT_ONCE).await.unwrap();
    let found = holder(&second).await.unwrap().unwrap();
    assert_eq!((found.pid, found.seen), (std::process::id(), true));
    let refused = Claim::take(&second, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(refused, DaemonError::RunsAlready(by) if by == found), "{refused}");

    // One that ends is waited for.
    let (taken, ()) = tokio::join!(Claim::take(&second, Duration::from_secs(1)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        claim.release().await.unwrap();
    });
    // What was taken meanwhile is not given up by who had it before.
    let before = world.read(NODE).await;
    drop(taken.unwrap());
    assert_eq!(world.read(NODE).await, before, "it goes with its process, and the node stays");
    assert_eq!(holder(&first).await.unwrap(), None);
    Claim::take(&first, AT_ONCE).await.unwrap().release().await.unwrap();
    assert_eq!(world.left().await, [""; 0]);
}

/// A store that begins anew says only later which domain this is.
#[tokio::test(start_paused = true)]
async fn it_is_claimed_again_as_soon_as_the_store_says_which_domain_this_is() {
    let world = World::new().await;
    let client = Client::over(world.store.connect(DRIVER), Config::default());
    let claim = Claim::take(&client, AT_ONCE).await.unwrap();
    let claimed = world.read(NODE).await;
    let _kept = tokio::spawn(async move { claim.lost().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.dom0.rm(&path("/local/domain/1/domid")).await.unwrap();
    world.dom0.rm(&path(NODE)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.read(NODE).await, "not there");
    world.write("/local/domain/1/domid", "1").await;
    world.reads(NODE, &claimed).await;
}

/// A process that was killed leaves the node; so may one of which nothing can be seen from here.
#[tokio::test(start_paused = true)]
async fn a_process_that_is_dead_serves_nothing() {
    let world = World::new().await;
    let client = Client::over(world.store.connect(DRIVER), Config::default());
    let claim = Claim::take(&client, AT_ONCE).await.unwrap();
    let ours = world.read(NODE).await;
    claim.release().await.unwrap();
    let with = |key: &str, value: &str| {
        let word = |word: &str| match word.split_once('=') {
            Some((name, _)) if name == key => format!("{key}={value}"),
            _ => word.to_owned(),
        };
        ours.split(' ').map(word).collect::<Vec<_>>().join(" ")
    };
    // Another process of this one's number, one before the boot, and what nobody can understand.
    for left in [with("pid", "4194304"), with("boot", "x"), "junk".to_owned(), String::new()] {
        world.write(NODE, &left).await;
        assert_eq!(holder(&client).await.unwrap(), None, "{left}");
        Claim::take(&client, AT_ONCE).await.unwrap().release().await.unwrap();
    }
    let elsewhere = with("ns", "1.1").replacen("pid=", "pid=9", 1);
    world.write(NODE, &elsewhere).await;
    let refused = Claim::take(&client, AT_ONCE).await.unwrap_err();
    assert!(refused.to_string().contains("of another pid namespace serves them"), "{refused}");
    assert_eq!(world.read(NODE).await, elsewhere);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_no_driver_domain_cannot_have_it() {
    let world = World::new().await;
    let client = Client::over(world.store.connect(GUEST), Config::default());
    let refused = Claim::take(&client, AT_ONCE).await.unwrap_err();
    assert!(matches!(refused, DaemonError::NoNotes), "{refused}");
}

/// Removed by hand, or with all of the daemon's notes: it is written again. Another process that has it meanwhile keeps it.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_removed_is_written_again() {
    let world = World::new().await;
    let client = Client::over(world.store.connect(DRIVER), Config::default());
    let claim = Claim::take(&client, AT_ONCE).await.unwrap();
    let ours = world.read(NODE).await;
    let (other, ()) = tokio::join!(claim.lost(), async {
        for gone in [NODE, "/local/domain/1/libxl/2", NODE] {
            _ = world.dom0.rm(&path(gone)).await;
            world.reads(NODE, &ours).await;
        }
        world.write(NODE, "junk").await;
        world.reads(NODE, &ours).await;
        world.write(NODE, &ours.replacen("pid=", "pid=9", 1).replacen("ns=", "ns=1.", 1)).await;
    });
    assert!(!other.seen, "{other:?}");
    let left = world.read(NODE).await;
    assert_ne!(left, ours);
    claim.release().await.unwrap();
    assert_eq!(world.read(NODE).await, left, "it is the other one's");
}
