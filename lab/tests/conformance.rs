//! The conformance cases, against the embedded store and against Debian's daemons.

use lab::conformance::{Profile, Tally, Target, cases, replay};
use lab::daemon::{Daemon, DaemonKind};
use lab::xendev::{self, StoreProcess};
use tokio::net::UnixListener;
use xs_store::Store;

/// Replays all cases. None may fail, and `passed` of them must apply: a replayer that skips too
/// much must not look like a server that does everything.
async fn all_pass(target: &Target, profile: Profile, passed: usize) {
    let tally: Tally = replay(&cases().unwrap(), target, profile, |_, _| ()).await;
    assert!(tally.failures.is_empty(), "{}\n{tally}", tally.failures.join("\n"));
    assert_eq!(tally.passed, passed, "{tally}");
}

#[tokio::test]
async fn embedded_in_process() {
    all_pass(&Target::embedded(Store::new()), Profile::XenstoredMaster, 217).await;
}

#[tokio::test]
async fn embedded_on_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let store = Store::new();
    let target = Target::socket(socket).with_guests_of(store.clone());
    tokio::select! {
        error = store.serve(listener) => panic!("the store stopped serving: {error}"),
        () = all_pass(&target, Profile::XenstoredMaster, 217) => {}
    }
}

/// The same program as people run it, with guests on rings.
#[tokio::test]
async fn a_store_with_rings() {
    let store = StoreProcess::start_with_domains(&xendev::build(false).unwrap()).unwrap();
    let target = Target::socket(store.socket()).with_rings(&store.state_dir());
    all_pass(&target, Profile::XenstoredMaster, 220).await;
}

/// The oracle: what the cases and the replayer hold to be xenstore is what the daemon does.
#[tokio::test]
async fn xenstored() {
    let daemon = Daemon::start(DaemonKind::Xenstored).unwrap();
    all_pass(&Target::daemon(&daemon), Profile::Xenstored417, 223).await;
}

#[tokio::test]
async fn oxenstored() {
    let daemon = Daemon::start(DaemonKind::Oxenstored).unwrap();
    all_pass(&Target::daemon(&daemon), Profile::Oxenstored417, 154).await;
}
