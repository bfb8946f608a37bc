//! How does one wait for a device to be connected? By saying what the store has to say: the closure
//! is called again whenever something that it has read has changed.
//!
//!     cargo run -p xs-client --example wait_for_state                    an embedded store
//!     cargo run -p xs-client --example wait_for_state -- SOCKET FRONTEND
//!
//! FRONTEND is a device's directory, as in `/local/domain/1/device/vif/0`.

use std::env;
use std::time::Duration;

use tokio::time::sleep;
use xs_client::{Client, Config, DomId, Error, Look, Path};
use xs_store::Store;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = env::args().skip(1);
    let client = match args.next() {
        Some(socket) => Client::connect_unix(socket, Config::default()).await?,
        None => embedded().await?,
    };
    let frontend: Path = args.next().as_deref().unwrap_or("/local/domain/1/device/vif/0").parse()?;
    let (state, link) = (&frontend.join("state")?, &frontend.join("backend")?);
    // The backend's directory is where the frontend says it is, so it is read first.
    let connected = |look: Look| async move {
        let ours = look.read(state).await?;
        println!("frontend: {:?}", ours.as_deref().map(String::from_utf8_lossy));
        let Some(backend) = look.read(link).await? else { return Ok(None) };
        let backend = Path::new(String::from_utf8_lossy(&backend).as_ref())?.join("state")?;
        let theirs = look.read(&backend).await?;
        println!("backend: {:?}", theirs.as_deref().map(String::from_utf8_lossy));
        let both = ours.is_some_and(|value| value == "4") && theirs.is_some_and(|value| value == "4");
        Ok::<_, Error>(both.then_some(backend))
    };
    let backend = client.wait_for(Duration::from_secs(10), connected).await?;
    println!("connected: {state} and {backend} are 4");
    Ok(())
}

/// A store with a device whose two ends connect to each other.
async fn embedded() -> Result<Client, Error> {
    let client = Client::over(Store::new().connect(DomId::DOM0), Config::default());
    let driver = client.clone();
    tokio::spawn(async move {
        let (front, back) = ("/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0");
        driver.write(&format!("{front}/backend").parse()?, back).await?;
        for (end, state) in [(front, "1"), (back, "2"), (front, "3"), (back, "4"), (front, "4")] {
            sleep(Duration::from_millis(50)).await;
            driver.write(&format!("{end}/state").parse()?, state).await?;
        }
        Ok::<_, Error>(())
    });
    Ok(client)
}
