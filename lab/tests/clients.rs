//! The client over every transport, against every server.

use std::path::Path as FsPath;

use lab::clients::{self, GUEST_VALUE_MAX, Outcome, World};
use lab::daemon::{Daemon, DaemonKind};
use lab::fakexen::FakeXen;
use lab::xendev::{self, StoreProcess};
use xs_client::transport::{Connect, UnixSocket};
use xs_client::{Access, Client, DomId, Path, Permission, Permissions, Request};
use xs_store::Store;

const GUEST: DomId = DomId(3);
const SPARE: DomId = DomId(9);

/// Runs all cases. None may fail, and `passed` of them must apply: cases that are left out must not
/// look like a client that does everything.
async fn all_pass(world: World, passed: usize) {
    let (mut text, mut failed, mut count) = (String::new(), false, 0);
    let tell = |name, outcome: &Outcome| {
        text += &format!("{name}: {outcome}\n");
        failed |= matches!(outcome, Outcome::Failed(_));
        count += usize::from(matches!(outcome, Outcome::Passed));
    };
    clients::run(&world, tell).await.unwrap();
    assert!(!failed, "{text}");
    assert_eq!(count, passed, "{text}");
}

async fn client(way: impl Connect) -> Client {
    Client::connect_with(way, clients::config()).await.unwrap()
}

/// Of domain 0 on a connection of any kind.
fn privileged(client: Client) -> World {
    World {
        client,
        domid: DomId::DOM0,
        admin: None,
        base: Path::new("/clients").unwrap(),
        payload_max: 4096,
        value_max: 4096,
        long_lists: true,
        spare: None,
    }
}

/// With a second connection that looks on.
async fn on_socket(socket: &FsPath, xen: &FakeXen) -> World {
    xen.create(SPARE).unwrap();
    let admin = Some(client(UnixSocket::new(socket)).await);
    World { admin, spare: Some(SPARE), ..privileged(client(UnixSocket::new(socket)).await) }
}

/// A guest with a home of its own.
async fn on_ring(socket: &FsPath, xen: &FakeXen) -> World {
    let admin = client(UnixSocket::new(socket)).await;
    xen.create(GUEST).unwrap();
    admin.request(Request::Introduce { domid: GUEST, gfn: 1, evtchn: 5 }).await.unwrap();
    let home = Path::new(format!("/local/domain/{GUEST}")).unwrap();
    admin.mkdir(&home).await.unwrap();
    let owner = Permission { domid: GUEST, access: Access::None };
    admin.set_perms(&home, Permissions::new(vec![owner]).unwrap()).await.unwrap();
    World {
        domid: GUEST,
        admin: Some(admin),
        base: home.join("clients").unwrap(),
        value_max: GUEST_VALUE_MAX,
        ..privileged(client(xen.way(GUEST).unwrap()).await)
    }
}

#[tokio::test]
async fn in_process() {
    all_pass(privileged(Client::over(Store::new().connect(DomId::DOM0), clients::config())), 22).await;
}

#[tokio::test]
async fn our_store_on_a_socket() {
    let store = StoreProcess::start_with_domains(&xendev::build(false).unwrap()).unwrap();
    all_pass(on_socket(&store.socket(), &FakeXen::at(store.state_dir())).await, 23).await;
}

#[tokio::test]
async fn our_store_on_a_ring() {
    let store = StoreProcess::start_with_domains(&xendev::build(false).unwrap()).unwrap();
    all_pass(on_ring(&store.socket(), &FakeXen::at(store.state_dir())).await, 24).await;
}

#[tokio::test]
async fn xenstored_on_a_socket() {
    let daemon = Daemon::start(DaemonKind::Xenstored).unwrap();
    all_pass(on_socket(daemon.socket(), &daemon.hypervisor()).await, 23).await;
}

#[tokio::test]
async fn xenstored_on_a_ring() {
    let daemon = Daemon::start(DaemonKind::Xenstored).unwrap();
    all_pass(on_ring(daemon.socket(), &daemon.hypervisor()).await, 24).await;
}

/// No value has more than 2048 bytes there.
#[tokio::test]
async fn oxenstored_on_a_socket() {
    let daemon = Daemon::start(DaemonKind::Oxenstored).unwrap();
    let world = on_socket(daemon.socket(), &daemon.hypervisor()).await;
    all_pass(World { value_max: 2048, ..world }, 23).await;
}

/// A list that is longer than a reply cannot be told there.
#[tokio::test]
async fn oxenstored_on_a_ring() {
    let daemon = Daemon::start(DaemonKind::Oxenstored).unwrap();
    let world = on_ring(daemon.socket(), &daemon.hypervisor()).await;
    all_pass(World { long_lists: false, ..world }, 23).await;
}
