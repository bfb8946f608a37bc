//! What does the store say at and below a node? All of it, in as many round trips as it has levels.
//!
//!     cargo run -p xs-client --example read_tree                      an embedded store
//!     cargo run -p xs-client --example read_tree -- SOCKET [PATH]     xenstored's socket, as root

use std::env;

use xs_client::{Client, Config, DomId, Error, Path};
use xs_store::Store;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = env::args().skip(1);
    let client = match args.next() {
        Some(socket) => Client::connect_unix(socket, Config::default()).await?,
        None => embedded().await?,
    };
    let root: Path = args.next().as_deref().unwrap_or("/local/domain").parse()?;
    let Some(tree) = client.read_tree(&root).await? else {
        println!("there is no {root}");
        return Ok(());
    };
    for (path, node) in tree.nodes() {
        let slash = if path.is_empty() { "" } else { "/" };
        println!("{root}{slash}{path} = {:?}", String::from_utf8_lossy(&node.value));
    }
    // Parts of it need no more requests.
    if let Some(state) = tree.value("1/device/vif/0/state") {
        println!("the frontend is in state {}", String::from_utf8_lossy(state));
    }
    let stats = client.stats();
    println!("{} requests, {} bytes received", stats.requests, stats.bytes_received);
    Ok(())
}

async fn embedded() -> Result<Client, Error> {
    let client = Client::over(Store::new().connect(DomId::DOM0), Config::default());
    for (path, value) in [
        ("/local/domain/0/name", "Domain-0"),
        ("/local/domain/1/name", "guest"),
        ("/local/domain/1/device/vif/0/backend-id", "0"),
        ("/local/domain/1/device/vif/0/state", "4"),
    ] {
        client.write(&path.parse()?, value).await?;
    }
    Ok(client)
}
