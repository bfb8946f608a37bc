//! How pciback and pcifront move: a guest's bus is made, its functions come and go, and it closes.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use xen_devstate::StateValue;
use xen_devstate::XenbusState::{
    self, Closed, Closing, Connected, Initialised, Initialising, Reconfigured, Reconfiguring,
};
use xs_client::{Client, DomId, Error, Path};

/// One end of a guest's PCI bus. Dropping it is as if its kernel had stopped.
#[derive(Debug)]
#[must_use = "a dropped driver does nothing"]
pub struct PciDriver(JoinHandle<()>);

impl Drop for PciDriver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PciDriver {
    /// pciback, for this guest. `latency` passes between a hint and what it does.
    pub fn backend(client: Client, fe: DomId, latency: Duration) -> Result<Self, Error> {
        Self::start(client, fe, latency, backend)
    }

    /// The guest's pcifront.
    pub fn frontend(client: Client, fe: DomId, latency: Duration) -> Result<Self, Error> {
        Self::start(client, fe, latency, frontend)
    }

    fn start(client: Client, fe: DomId, latency: Duration, react: React) -> Result<Self, Error> {
        let back = Path::new(format!("/local/domain/0/backend/pci/{fe}/0"))?;
        let front = Path::new(format!("/local/domain/{fe}/device/pci/0"))?;
        let ends = Ends { back: back.join("state")?, front: front.join("state")? };
        let task = tokio::spawn(async move {
            // A store that goes away ends the driver, as it would a kernel's.
            _ = drive(&client, &ends, &back, latency, react).await;
        });
        Ok(Self(task))
    }
}

/// What an end does when both say this: its new state.
type React = fn(Option<XenbusState>, Option<XenbusState>) -> Option<(End, XenbusState)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Back,
    Front,
}

struct Ends {
    back: Path,
    front: Path,
}

fn backend(back: Option<XenbusState>, front: Option<XenbusState>) -> Option<(End, XenbusState)> {
    let to = |state| Some((End::Back, state));
    match (back?, front) {
        (Closed, _) => None,
        (_, None | Some(Closed)) => to(Closed),
        (Initialising, _) => to(Initialised),
        (Initialised, Some(Initialised)) | (Reconfigured, Some(Connected)) => to(Connected),
        (Reconfiguring, Some(Reconfiguring)) => to(Reconfigured),
        _ => None,
    }
}

fn frontend(back: Option<XenbusState>, front: Option<XenbusState>) -> Option<(End, XenbusState)> {
    let to = |state| Some((End::Front, state));
    match (back, front?) {
        (Some(Initialised), Initialising) => to(Initialised),
        (Some(Connected), Initialised) | (Some(Reconfigured), Reconfiguring) => to(Connected),
        (Some(Reconfiguring), Connected) => to(Reconfiguring),
        (Some(Closing) | None, state) if state != Closed => to(Closed),
        _ => None,
    }
}

async fn drive(
    client: &Client,
    ends: &Ends,
    directory: &Path,
    latency: Duration,
    react: React,
) -> Result<(), Error> {
    let mut watches = [client.watch(&ends.back).await?, client.watch(&ends.front).await?];
    loop {
        // Before there is a bus, the guest may not read where it will be. A store that went away ends the watches.
        let seen = client.read_many(&[ends.back.clone(), ends.front.clone()]).await;
        let seen = seen.unwrap_or_else(|_| vec![None, None]);
        let state =
            |index: usize| -> Option<XenbusState> { StateValue::parse(seen[index].as_deref()?).state() };
        if let Some((end, state)) = react(state(0), state(1)) {
            sleep(latency).await;
            apply(client, ends, directory, (end, state)).await?;
            continue;
        }
        let [back, front] = &mut watches;
        tokio::select! {
            changed = back.changed() => changed?,
            changed = front.changed() => changed?,
        };
    }
}

/// Writes a state, and as the backend what becomes of the functions; never into a directory that is gone.
async fn apply(
    client: &Client,
    ends: &Ends,
    directory: &Path,
    (end, state): (End, XenbusState),
) -> Result<(), Error> {
    let node = if end == End::Back { &ends.back } else { &ends.front };
    client
        .transaction(|tx| async move {
            if tx.read_opt(node).await?.is_none() {
                return Ok(());
            }
            if end == End::Back && matches!(state, Initialised | Reconfigured) {
                let count = tx.read_opt(&directory.join("num_devs")?).await?;
                let count =
                    count.and_then(|count| std::str::from_utf8(&count).ok()?.parse().ok()).unwrap_or(0_u32);
                for index in 0..count {
                    let of_function = directory.join(format!("state-{index}"))?;
                    let now = tx.read_opt(&of_function).await?;
                    let now = now.and_then(|now| StateValue::parse(&now).state());
                    let new = match now {
                        Some(Initialising) => Initialised,
                        Some(Closing) => Closed,
                        _ => continue,
                    };
                    tx.write(&of_function, new.digits()).await?;
                }
            }
            tx.write(node, state.digits()).await
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two, one after the other, until neither moves.
    fn settle(mut back: XenbusState, mut front: XenbusState) -> Vec<(u8, u8)> {
        let mut seen = vec![(back.number(), front.number())];
        while let Some((end, state)) =
            backend(Some(back), Some(front)).or_else(|| frontend(Some(back), Some(front)))
        {
            if end == End::Back {
                back = state;
            } else {
                front = state;
            }
            seen.push((back.number(), front.number()));
        }
        seen
    }

    #[test]
    fn a_bus_is_made_changed_and_closed() {
        assert_eq!(settle(Initialising, Initialising), [(1, 1), (3, 1), (3, 3), (4, 3), (4, 4)]);
        assert_eq!(settle(Reconfiguring, Connected), [(7, 4), (7, 7), (8, 7), (8, 4), (4, 4)]);
        assert_eq!(settle(Closing, Connected), [(5, 4), (5, 6), (6, 6)]);
    }
}
