//! How does a backend with an epoll loop of its own use the store? It lends the client's descriptor to the loop, and has all its
//! watches in one queue: no runtime, no thread for it.
//!
//!     cargo run -p xs-client --example epoll_backend         200 devices in an embedded store
//!
//! Each device goes through the states of a life: the frontend to 3, the backend to 4, the frontend to 6, the backend too.

use std::error::Error;
use std::fs;
use std::thread;
use std::time::Duration;

use rustix::event::epoll;
use xs_client::blocking::{Client, Watches};
use xs_client::{Config, DomId, Path, path};
use xs_store::Store;

const DEVICES: usize = 200;

static BACKENDS: Path = path!("/local/domain/0/backend/vbd/1");
static FRONTENDS: Path = path!("/local/domain/1/device/vbd");

/// What an epoll loop tells the sources of its events apart by.
const STORE: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let store = Store::new();
    let (client, guest) = (embedded(&store)?, embedded(&store)?);
    let mut watches = client.watches();
    for device in 0..DEVICES {
        client.write(&state(&BACKENDS, device)?, "2")?;
        client.write(&state(&FRONTENDS, device)?, "1")?;
        watches.add(&state(&FRONTENDS, device)?)?;
    }
    let guest = thread::spawn(move || live(&guest));

    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&events, &client, epoll::EventData::new_u64(STORE), epoll::EventFlags::IN)?;
    let mut closed = 0;
    while closed < DEVICES {
        // What came with the replies of other calls makes no descriptor readable: so first look, then wait.
        closed += look(&client, &mut watches)?;
        if closed < DEVICES {
            let mut ready = Vec::with_capacity(8);
            epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None)?;
            // Events of the devices' own rings would be among these.
            assert!(ready.iter().all(|event| event.data.u64() == STORE));
        }
    }
    let count = |of| fs::read_dir(format!("/proc/self/{of}")).map(|entries| entries.count());
    println!("{closed} devices lived, with {} requests", client.stats().requests);
    println!(
        "{} threads, {} descriptors, those of the embedded store and of the guest among them",
        count("task")?,
        count("fd")?
    );
    guest.join().expect("it does not panic")?;
    Ok(())
}

fn state(of: &Path, device: usize) -> Result<Path, xs_client::Error> {
    Ok(of.join(format!("{device}/state"))?)
}

/// Looks at the devices of which something has changed, and tells how many have closed.
fn look(client: &Client, watches: &mut Watches) -> Result<usize, xs_client::Error> {
    let mut closed = 0;
    while let Some(changes) = watches.changed(Duration::ZERO)? {
        // After an overflow anything may have changed.
        let all = (0..DEVICES).filter(|_| changes.overflowed).map(|device| state(&FRONTENDS, device));
        let all = all.collect::<Result<Vec<_>, _>>()?;
        for frontend in changes.paths.iter().chain(&all) {
            // A guest may write what it likes there.
            let theirs = client.read_parsed::<u32>(frontend).unwrap_or(0);
            let Some(device) = frontend.parent().and_then(|device| device.name().parse().ok()) else {
                continue;
            };
            let backend = state(&BACKENDS, device)?;
            match (theirs, client.read_parsed::<u32>(&backend)?) {
                (3, 2) => client.write(&backend, "4")?,
                (6, 4) => {
                    client.write(&backend, "6")?;
                    watches.remove(frontend);
                    closed += 1;
                }
                _ => {}
            }
        }
    }
    Ok(closed)
}

/// The guest: each device connects, and closes when its backend has connected.
fn live(guest: &Client) -> Result<(), xs_client::Error> {
    for device in 0..DEVICES {
        guest.write(&state(&FRONTENDS, device)?, "3")?;
        let backend = state(&BACKENDS, device)?;
        guest.wait_for(Duration::from_secs(10), |look| {
            Ok::<_, xs_client::Error>(look.read(&backend)?.filter(|value| value == "4"))
        })?;
        guest.write(&state(&FRONTENDS, device)?, "6")?;
    }
    Ok(())
}

/// A store needs a runtime, which gets a thread of its own.
fn embedded(store: &Store) -> Result<Client, Box<dyn Error>> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut connection = {
        let _guard = runtime.enter();
        store.connect(DomId::DOM0)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            let mut far = tokio::net::UnixStream::from_std(far)?;
            tokio::io::copy_bidirectional(&mut far, &mut connection).await
        })
    });
    Ok(Client::over(near, Config::default())?)
}
