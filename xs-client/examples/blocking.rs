//! How does a small tool without a runtime use the store? Calls block, and threads share a client.
//!
//!     cargo run -p xs-client --example blocking              an embedded store
//!     cargo run -p xs-client --example blocking -- SOCKET    xenstored's socket, as root
//!
//! In a real store it uses `/tool/xendev-example`, and removes that again.

use std::env;
use std::error::Error;
use std::thread;
use std::time::Duration;

use xs_client::blocking::Client;
use xs_client::{Config, DomId, Path};
use xs_store::Store;

fn main() -> Result<(), Box<dyn Error>> {
    let client = match env::args().nth(1) {
        Some(socket) => Client::connect_unix(socket, Config::default())?,
        None => embedded()?,
    };
    let home: Path = "/tool/xendev-example".parse()?;
    let (name, state) = (home.join("name")?, home.join("state")?);
    client.transaction(|tx| {
        tx.write(&name, "example")?;
        tx.write(&state, "1")
    })?;
    println!("{} says {:?}", home, client.directory(&home)?);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            client.wait_for(Duration::from_secs(10), |look| {
                let value = look.read(&state)?;
                println!("state: {:?}", value.as_deref().map(String::from_utf8_lossy));
                Ok::<_, xs_client::Error>(value.filter(|value| value == "4"))
            })
        });
        for value in ["2", "3", "4"] {
            thread::sleep(Duration::from_millis(50));
            client.write(&state, value)?;
        }
        waiting.join().expect("it does not panic").map(drop)
    })?;
    client.rm(&home)?;
    println!("{} requests", client.stats().requests);
    Ok(())
}

/// A store needs a runtime, which gets a thread of its own.
fn embedded() -> Result<Client, Box<dyn Error>> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        let mut far = tokio::net::UnixStream::from_std(far)?;
        tokio::io::copy_bidirectional(&mut far, &mut Store::new().connect(DomId::DOM0)).await
    };
    thread::spawn(move || runtime.block_on(serve));
    Ok(Client::over(near, Config::default())?)
}
