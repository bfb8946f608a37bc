//! What does a watcher see when xenstored is started again? That the connection was lost and
//! restored, and its watch fires: look again.
//!
//!     cargo run -p xs-client --example resilient_watcher              an embedded store
//!     cargo run -p xs-client --example resilient_watcher -- SOCKET    until it is ended

use std::env;
use std::error::Error;
use std::time::Duration;

use tokio::{net::UnixListener, time::sleep};
use xs_client::{Client, Config, Path, UnixSocket};
use xs_store::Store;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    if let Some(socket) = env::args().nth(1) {
        return watch(UnixSocket::new(socket)).await;
    }
    let folder = tempfile::tempdir()?;
    let socket = &folder.path().join("socket");
    tokio::select! {
        biased;
        served = serve_twice(socket) => served,
        ended = watch(UnixSocket::new(socket)) => ended,
    }
}

async fn watch(socket: UnixSocket) -> Result<(), Box<dyn Error>> {
    let path: Path = "/local/domain/1/name".parse()?;
    let client = Client::connect_with(socket, Config::default()).await?;
    let mut lifecycle = client.lifecycle();
    let mut watch = client.watch(&path).await?;
    loop {
        tokio::select! {
            Some(state) = lifecycle.next() => println!("connection: {state:?}"),
            changes = watch.changed() => {
                changes?;
                let value = client.read_opt(&path).await?;
                println!("{path} = {:?}", value.as_deref().map(String::from_utf8_lossy));
            }
        }
    }
}

/// A store, and after it another one in its place, which knows nothing of the first.
async fn serve_twice(socket: &std::path::Path) -> Result<(), Box<dyn Error>> {
    for name in ["first", "second"] {
        let listener = UnixListener::bind(socket)?;
        let serving = tokio::spawn(async move { Store::new().serve(listener).await });
        let writer = Client::connect_unix(socket, Config::default()).await?;
        writer.write(&"/local/domain/1/name".parse()?, name).await?;
        sleep(Duration::from_millis(200)).await;
        serving.abort();
        std::fs::remove_file(socket)?;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
