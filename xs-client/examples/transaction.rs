//! What becomes of transactions that conflict? They are run again: eight tasks take numbers from one
//! counter, and no number is taken twice.
//!
//!     cargo run -p xs-client --example transaction              an embedded store
//!     cargo run -p xs-client --example transaction -- SOCKET    xenstored's socket, as root
//!
//! In a real store it uses `/tool/xendev-example`, and removes that again.

use std::env;

use xs_client::{Client, Config, DomId, Error, Path};
use xs_store::Store;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = match env::args().nth(1) {
        Some(socket) => Client::connect_unix(socket, Config::default()).await?,
        None => Client::over(Store::new().connect(DomId::DOM0), Config::default()),
    };
    let home: Path = "/tool/xendev-example".parse()?;
    client.write(&home.join("next")?, "0").await?;
    let tasks: Vec<_> = (0..8).map(|task| tokio::spawn(take(client.clone(), home.clone(), task))).collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    for number in client.directory(&home.join("taken")?).await? {
        let by = client.read(&home.join("taken")?.join(&number)?).await?;
        println!("{number} was taken by task {}", String::from_utf8_lossy(&by));
    }
    let stats = client.stats();
    println!("{} attempts, {} of which conflicted", stats.transactions, stats.conflicts);
    client.rm(&home).await
}

/// Takes the next number. What the closure does is seen by others all at once, or not at all.
async fn take(client: Client, home: Path, task: u32) -> Result<(), Error> {
    let (next, taken) = (&home.join("next")?, &home.join("taken")?);
    client
        .transaction(|tx| async move {
            let number = String::from_utf8_lossy(&tx.read(next).await?).into_owned();
            tx.write(&taken.join(&number)?, task.to_string()).await?;
            let number: u32 = number.parse().unwrap_or(0);
            tx.write(next, (number + 1).to_string()).await
        })
        .await
}
