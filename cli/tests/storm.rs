//! A driver domain and a guest that write to their directories of a device all the time, on Debian's daemons, whose rules
//! for conflicts are their own: the toolstack removes the device all the same.

#[allow(dead_code, reason = "nothing here is served, so nothing needs drivers and scripts")]
mod host;

use std::time::Duration;

use host::Host;
use lab::daemon::DaemonKind;
use tokio::task::JoinHandle;
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Client, Config, DomId, Path, Request};

const DD: DomId = DomId(3);
const BE: &str = "/local/domain/3/backend/vbd/1/51712";
const FE: &str = "/local/domain/1/device/vbd/51712";

/// Changes nodes of a directory until it is gone, by requests that do not make it again: those of a socket, which the
/// daemons take faster than those of a domain's ring.
async fn storm(host: &Host, directory: &str) -> JoinHandle<u64> {
    let client = Client::connect_unix(host.daemon.socket(), Config::default()).await.unwrap();
    let directory = Path::new(directory).unwrap();
    let perms = client.get_perms(&directory).await.unwrap();
    let nodes = [directory.clone(), directory.join("state").unwrap()];
    let requests = nodes.map(|path| Request::SetPerms { path, perms: perms.clone() });
    tokio::spawn(async move {
        let mut rounds = 0;
        while client.batch(requests.to_vec()).await.is_ok_and(|done| done[0].is_ok()) {
            rounds += 1;
        }
        rounds
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_writes_all_the_time_cannot_keep_its_device() {
    for kind in [DaemonKind::Xenstored, DaemonKind::Oxenstored] {
        let mut host = Host::start(kind).await;
        host.frontends = None;
        let before = host.dump().await;
        host.daemon.create_domain(DD).unwrap();
        sim::create_domain(&host.client, DD, "dd").await.unwrap();
        let disk = "vdev=xvda,format=raw,backend=dd,target=/srv/d.img";
        // Its kernel takes the device up, and nothing there moves it from then on.
        let kernel = Client::connect_unix(host.daemon.socket(), Config::default()).await.unwrap();
        let drivers = Drivers::backends(kernel, DD, Duration::ZERO).unwrap();
        host.xendev(&["block-attach", "guest", disk, "--no-devd"]).await.quietly();
        drop(drivers);
        let mut storms = Vec::new();
        for directory in [BE, BE, BE, FE] {
            storms.push(storm(&host, directory).await);
        }
        let limits = ["--timeout", "1", "--script-timeout", "1"];
        let detach = [&["block-detach", "guest", "xvda", "--force"][..], &limits].concat();
        let ran = host.xendev(&detach).await;
        assert_eq!(ran.code, Some(0), "{kind:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("driver domain 3 did not clean up"), "{}", ran.stderr);
        for storm in storms {
            assert!(storm.await.unwrap() > 0);
        }
        host.client.rm(&Path::new("/local/domain/3").unwrap()).await.unwrap();
        host.client.rm(&Path::new("/libxl/3").unwrap()).await.unwrap();
        assert_eq!(host.dump().await, before, "{kind:?}");
    }
}
