//! A guest's PCI bus in the store: the backend's directory that lists its functions, and who has which function.
//!
//! What is to be written is decided by plain values ([`Bus`]), and written in the transaction that has read them. A
//! function is found by its address each time: whoever removes one before it gives it another number.

use futures_util::future::try_join_all;
use xen_devstate::{StateValue, XenbusState};
use xs_client::{Access, Client, DomId, Path, Permissions, Request, Requests};

use super::course::Change;
use crate::operation::store::{remove_theirs, text, transact};
use crate::pcidev::{PciAddress, PciDev};
use crate::{Cause, DeviceId, Kind, Which};

/// The most functions that a guest is taken to have: as many as a bus has.
pub(crate) const MOST: u32 = 256;

/// The keys that a function has, with its number behind them.
const KEYS: [&str; 7] = ["key", "dev", "vdev", "vdevfn", "opts", "state", "name"];

/// Where libxl notes which guest has which function.
const NOTES: &str = "/libxl/pci";

/// A guest's bus, as the backend's directory tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bus {
    pub(super) state: Option<XenbusState>,
    /// By their numbers; `None` is what is no address.
    pub(super) functions: Vec<Option<PciAddress>>,
}

/// What is to be written into the backend's directory: keys with their values, `None` for one that goes.
type Writes = Vec<(String, Option<String>)>;

impl Bus {
    /// Reads it; `None` if it is not there.
    pub(super) async fn read(store: &Requests, backend: &Path) -> Result<Option<Self>, Cause> {
        let keys = [backend.clone(), backend.join("num_devs")?, backend.join("state")?];
        let mut seen = store.read_many(&keys).await?.into_iter();
        let mut next = || seen.next().flatten();
        let (there, count, state) = (next().is_some(), text(next()), next());
        if !there {
            return Ok(None);
        }
        let count = count.and_then(|count| count.parse().ok()).unwrap_or(0).min(MOST);
        let nodes = (0..count).map(|index| backend.join(format!("dev-{index}")));
        let nodes: Vec<Path> = nodes.collect::<Result<_, _>>()?;
        let functions = store.read_many(&nodes).await?.into_iter();
        let functions = functions.map(|value| text(value)?.parse().ok()).collect();
        let state = state.and_then(|state| StateValue::parse(&state).state());
        Ok(Some(Self { state, functions }))
    }

    pub(super) fn index(&self, address: PciAddress) -> Option<usize> {
        self.functions.iter().position(|function| *function == Some(address))
    }

    /// The keys of a function that is new.
    fn keys_of(dev: &PciDev, index: usize) -> Writes {
        let address = dev.address.to_string();
        let mut writes = vec![(format!("key-{index}"), Some(address.clone()))];
        writes.push((format!("dev-{index}"), Some(address)));
        if let Some(place) = dev.place() {
            writes.push((format!("vdevfn-{index}"), Some(place)));
        }
        writes.push((format!("opts-{index}"), Some(dev.options())));
        writes.push((format!("state-{index}"), Some(XenbusState::Initialising.digits().to_owned())));
        writes
    }

    /// Adds a function and announces it, if both ends have the last set.
    pub(super) fn add(&self, dev: &PciDev) -> Result<(Change, Writes), Cause> {
        if self.index(dev.address).is_some() {
            return Err(Cause::Exists);
        }
        if self.state != Some(XenbusState::Connected) {
            return Ok((Change::Busy, Writes::new()));
        }
        let index = self.functions.len();
        if index >= MOST as usize {
            return Err(Cause::Invalid(format!("the guest's bus has {MOST} functions already")));
        }
        let mut writes = Self::keys_of(dev, index);
        writes.push(("num_devs".to_owned(), Some((index + 1).to_string())));
        writes.push(("state".to_owned(), Some(XenbusState::Reconfiguring.digits().to_owned())));
        Ok((Change::Function, writes))
    }

    /// Announces that a function goes, or tells the bus to close if it has no other.
    pub(super) fn mark(&self, address: PciAddress, anyway: bool) -> (Change, Writes) {
        let Some(index) = self.index(address) else { return (Change::Nowhere, Writes::new()) };
        let state = |key: String, state: XenbusState| (key, Some(state.digits().to_owned()));
        let closes = matches!(self.state, Some(XenbusState::Closing | XenbusState::Closed));
        if self.functions.len() == 1 {
            let mut writes = vec![("online".to_owned(), Some("0".to_owned()))];
            if !closes {
                writes.push(state("state".to_owned(), XenbusState::Closing));
            }
            return (Change::Bus, writes);
        }
        if self.state != Some(XenbusState::Connected) && !closes && !anyway {
            return (Change::Busy, Writes::new());
        }
        let mut writes = vec![state(format!("state-{index}"), XenbusState::Closing)];
        // A bus that closes lets go of all of them.
        if !closes {
            writes.push(state("state".to_owned(), XenbusState::Reconfiguring));
        }
        (Change::Function, writes)
    }

    /// Removes the keys of a function, and gives those behind it the next lower numbers. `value`: what a key holds.
    fn drop(&self, address: PciAddress, value: impl Fn(&str) -> Option<String>) -> Writes {
        let Some(index) = self.index(address) else { return Writes::new() };
        let last = self.functions.len() - 1;
        let mut writes = Writes::new();
        for number in index..=last {
            for key in KEYS {
                let (to, from) = (format!("{key}-{number}"), format!("{key}-{}", number + 1));
                let new = if number < last { value(&from) } else { None };
                let old = value(&to);
                if new != old {
                    writes.push((to, new));
                }
            }
        }
        writes.push(("num_devs".to_owned(), Some(last.to_string())));
        writes
    }
}

fn requests(backend: &Path, writes: Writes) -> Result<Vec<Request>, Cause> {
    let request = |(key, value): (String, Option<String>)| {
        let path = backend.join(key)?;
        Ok(match value {
            Some(value) => Request::Write { path, value: value.into() },
            None => Request::Rm(path),
        })
    };
    writes.into_iter().map(request).collect()
}

/// The device that a guest's bus is.
pub(super) fn id(fe: DomId) -> DeviceId {
    DeviceId::new(Which { fe, kind: Kind::Pci, devid: 0 }, DomId::DOM0)
}

fn shared(owner: DomId, reader: DomId) -> Permissions {
    Permissions::owned_by(owner, Access::None).grant(reader, Access::Read)
}

/// Makes a guest's bus with a function, or adds the function to the bus that is there.
pub(super) async fn write(client: &Client, fe: DomId, dev: &PciDev) -> Result<Change, Cause> {
    let id = id(fe);
    let (backend, frontend) = (&id.backend()?, &id.frontend()?);
    if client.read_opt(backend).await?.is_none() && client.read_opt(frontend).await?.is_some() {
        // What an earlier bus has left.
        let paths = id.paths()?;
        remove_theirs(client, &id, &paths, &[&paths.frontend], |seen| !seen.be).await?;
    }
    transact(client, |tx| async move {
        if let Some(bus) = Bus::read(&tx, backend).await? {
            let (change, writes) = bus.add(dev)?;
            return Ok((change, requests(backend, writes)?));
        }
        let home = Path::new(format!("/local/domain/{fe}"))?;
        let name = text(tx.read_opt(&home.join("name")?).await?);
        if tx.read_opt(&home).await?.is_none() {
            return Err(Cause::Gone { domain: true });
        }
        let key = |key: &str, value: String| (key.to_owned(), Some(value));
        let mut all = vec![Request::Mkdir(frontend.clone())];
        all.push(Request::SetPerms { path: frontend.clone(), perms: shared(fe, id.be) });
        let of_guest =
            [("backend", backend.to_string()), ("backend-id", id.be.to_string()), ("state", "1".to_owned())];
        all.extend(requests(frontend, of_guest.map(|(name, value)| key(name, value)).to_vec())?);
        all.push(Request::Mkdir(backend.clone()));
        all.push(Request::SetPerms { path: backend.clone(), perms: shared(id.be, fe) });
        let mut keys = vec![key("frontend", frontend.to_string()), key("frontend-id", fe.to_string())];
        keys.extend([key("online", "1".to_owned()), key("state", "1".to_owned())]);
        keys.extend(name.map(|name| key("domain", name)));
        keys.extend(Bus::keys_of(dev, 0));
        keys.push(key("num_devs", "1".to_owned()));
        all.extend(requests(backend, keys)?);
        Ok((Change::Bus, all))
    })
    .await
}

/// Announces that a function goes.
pub(super) async fn mark(
    client: &Client,
    fe: DomId,
    address: PciAddress,
    anyway: bool,
) -> Result<Change, Cause> {
    let backend = &id(fe).backend()?;
    transact(client, |tx| async move {
        let Some(bus) = Bus::read(&tx, backend).await? else { return Ok((Change::Nowhere, Vec::new())) };
        let (change, writes) = bus.mark(address, anyway);
        Ok((change, requests(backend, writes)?))
    })
    .await
}

/// Removes what the backend's directory holds of a function.
pub(super) async fn drop(client: &Client, fe: DomId, address: PciAddress) -> Result<(), Cause> {
    let backend = &id(fe).backend()?;
    transact(client, |tx| async move {
        let Some(bus) = Bus::read(&tx, backend).await? else { return Ok(((), Vec::new())) };
        let names: Vec<String> =
            (0..bus.functions.len()).flat_map(|index| KEYS.map(|key| format!("{key}-{index}"))).collect();
        let nodes: Vec<Path> = names.iter().map(|name| backend.join(name)).collect::<Result<_, _>>()?;
        let values: Vec<Option<String>> = tx.read_many(&nodes).await?.into_iter().map(text).collect();
        let value = |key: &str| values[names.iter().position(|name| name == key)?].clone();
        Ok(((), requests(backend, bus.drop(address, value))?))
    })
    .await
}

/// The state of a function, as its backend has it.
pub(super) async fn state_of(
    client: &Client,
    fe: DomId,
    address: PciAddress,
) -> Result<Option<StateValue>, Cause> {
    let backend = id(fe).backend()?;
    let index = Bus::read(client, &backend).await?.and_then(|bus| bus.index(address));
    let Some(index) = index else { return Ok(None) };
    let state = client.read_opt(&backend.join(format!("state-{index}"))?).await?;
    Ok(state.map(|state| StateValue::parse(&state)))
}

/// Where it is noted who has a function.
fn note(address: PciAddress) -> Result<Path, Cause> {
    let PciAddress { domain, bus, device, function } = address;
    Ok(Path::new(format!("{NOTES}/{domain:04x}-{bus:02x}-{device:02x}-{function:x}"))?)
}

/// The guest that has a function by libxl's note.
pub(super) async fn noted(store: &Requests, address: PciAddress) -> Result<Option<DomId>, Cause> {
    let domid = text(store.read_opt(&note(address)?.join("domid")?).await?);
    Ok(domid.and_then(|domid| domid.parse().ok()))
}

/// Sees that no guest has a function; `fe` is to get it.
pub(super) async fn is_free(store: &Requests, fe: DomId, address: PciAddress) -> Result<(), Cause> {
    let refusal = |domid: DomId, place: String| {
        if domid == fe {
            return Cause::Exists;
        }
        Cause::Assigned { device: format!("the PCI function {address}"), domid, place }
    };
    let all = Path::new("/local/domain/0/backend/pci")?;
    let domids = store.directory_or_empty(&all).await?;
    let domids: Vec<DomId> = domids.iter().filter_map(|domid| domid.parse().ok()).collect();
    let backends = domids.iter().map(|domid| all.join(format!("{domid}/0")));
    let backends: Vec<Path> = backends.collect::<Result<_, _>>()?;
    let buses = try_join_all(backends.iter().map(|backend| Bus::read(store, backend))).await?;
    for (domid, bus) in domids.iter().zip(buses) {
        if let Some(index) = bus.and_then(|bus| bus.index(address)) {
            return Err(refusal(*domid, format!("as dev-{index} of its bus")));
        }
    }
    match noted(store, address).await? {
        Some(domid) => Err(refusal(domid, format!("as {} says", note(address)?))),
        None => Ok(()),
    }
}

/// Notes that a guest has a function, if no guest has it.
pub(super) async fn claim(client: &Client, fe: DomId, address: PciAddress) -> Result<(), Cause> {
    transact(client, |tx| async move {
        is_free(&tx, fe, address).await?;
        let path = note(address)?.join("domid")?;
        Ok(((), vec![Request::Write { path, value: fe.to_string().into() }]))
    })
    .await
}

/// Forgets that a guest has a function; what else libxl notes of it stays.
pub(super) async fn unclaim(client: &Client, fe: DomId, address: PciAddress) -> Result<(), Cause> {
    transact(client, |tx| async move {
        if noted(&tx, address).await? != Some(fe) {
            return Ok(((), Vec::new()));
        }
        let (all, note) = (Path::new(NOTES)?, note(address)?);
        let rm = if tx.directory_or_empty(&note).await?.len() > 1 {
            note.join("domid")?
        } else if tx.directory_or_empty(&all).await?.len() > 1 {
            note
        } else {
            all
        };
        Ok(((), vec![Request::Rm(rm)]))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn bus(state: XenbusState, functions: &[&str]) -> Bus {
        Bus { state: Some(state), functions: functions.iter().map(|text| text.parse().ok()).collect() }
    }

    fn shown(writes: Writes) -> Vec<String> {
        writes
            .into_iter()
            .map(|(key, value)| value.map_or(format!("-{key}"), |value| format!("{key}={value}")))
            .collect()
    }

    const CONNECTED: XenbusState = XenbusState::Connected;

    #[test]
    fn a_function_is_added_behind_the_others() {
        let mut dev = PciDev::new(address("4:0.0"));
        dev.slot = Some(5);
        let (change, writes) = bus(CONNECTED, &["3:0.0"]).add(&dev).unwrap();
        assert_eq!(change, Change::Function);
        assert_eq!(
            shown(writes),
            [
                "key-1=0000:04:00.0",
                "dev-1=0000:04:00.0",
                "vdevfn-1=28",
                "opts-1=msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict",
                "state-1=1",
                "num_devs=2",
                "state=7"
            ]
        );
        assert_eq!(bus(CONNECTED, &["4:0.0"]).add(&dev).unwrap_err().code(), "exists");
        for state in [XenbusState::Initialised, XenbusState::Reconfiguring, XenbusState::Reconfigured] {
            assert_eq!(bus(state, &["3:0.0"]).add(&dev).unwrap(), (Change::Busy, Writes::new()), "{state}");
        }
        let full = Bus { state: Some(CONNECTED), functions: vec![None; MOST as usize] };
        assert_eq!(full.add(&dev).unwrap_err().code(), "invalid");
    }

    #[test]
    fn a_function_is_marked_at_its_place() {
        let two = |state| bus(state, &["3:0.0", "4:0.0"]);
        let mark = |bus: &Bus, anyway| {
            let (change, writes) = bus.mark(address("4:0.0"), anyway);
            (change, shown(writes).join(" "))
        };
        assert_eq!(mark(&two(CONNECTED), false), (Change::Function, "state-1=5 state=7".to_owned()));
        assert_eq!(mark(&two(XenbusState::Reconfiguring), false).0, Change::Busy);
        assert_eq!(mark(&two(XenbusState::Reconfiguring), true).1, "state-1=5 state=7");
        assert_eq!(mark(&two(XenbusState::Closed), false), (Change::Function, "state-1=5".to_owned()));
        assert_eq!(mark(&bus(CONNECTED, &["3:0.0"]), true).0, Change::Nowhere);
        assert_eq!(mark(&bus(CONNECTED, &["4:0.0"]), false), (Change::Bus, "online=0 state=5".to_owned()));
        assert_eq!(mark(&bus(XenbusState::Closed, &["4:0.0"]), false), (Change::Bus, "online=0".to_owned()));
    }

    #[test]
    fn the_gap_is_closed() {
        let held = |key: &str| {
            let held = [
                ("dev-0", "a"),
                ("state-0", "4"),
                ("vdevfn-0", "28"),
                ("dev-1", "b"),
                ("state-1", "4"),
                ("dev-2", "c"),
                ("state-2", "3"),
                ("name-2", "n"),
            ];
            held.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
        };
        let three = bus(CONNECTED, &["3:0.0", "4:0.0", "5:0.0"]);
        assert_eq!(
            shown(three.drop(address("3:0.0"), held)).join(" "),
            "dev-0=b -vdevfn-0 dev-1=c state-1=3 name-1=n -dev-2 -state-2 -name-2 num_devs=2"
        );
        assert_eq!(shown(three.drop(address("5:0.0"), held)).join(" "), "-dev-2 -state-2 -name-2 num_devs=2");
        assert_eq!(three.drop(address("6:0.0"), held), Writes::new());
    }
}
