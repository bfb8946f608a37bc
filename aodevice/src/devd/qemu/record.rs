//! What is recorded of a guest's QEMU, in the home of the domain that serves.
//!
//! `libxl/<fe>/qdisk-backend-pid` is libxl's node for it, and `device-model/<fe>/state` QEMU's own word. Beside it
//! the daemon notes when the process of this number has started, so that no later one is taken for it;
//! and, before it starts one or tells one to end, that it does so: a daemon that is killed in the next moment leaves a QEMU
//! that is found, or one whose end is waited for.

use serde::Serialize;
use xs_client::{Client, DomId, Error, Path, PathError, Request, Requests};

use super::ProcessId;
use crate::devd::place::{NOTES, domid};
use crate::operation::{cleanup, text};

/// What stands there while a QEMU is being started.
const STARTING: &str = "starting";

/// What stands there besides of one that was told to end.
const ENDING: &str = " ending";

/// What the store says of a guest's QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Its number, and when it started if that was noted.
    pub(super) process: Option<(u32, Option<u64>)>,
    /// Whether the daemon was about to start one.
    pub(super) starting: bool,
    /// Whether it was told to end.
    pub(super) ending: bool,
    /// Whether it says that it serves devices.
    pub(super) running: bool,
    /// Whether there is anything at all.
    pub(super) is_there: bool,
}

fn pid_node(fe: DomId) -> Result<Path, PathError> {
    Path::new(format!("{NOTES}/{fe}/qdisk-backend-pid"))
}

fn own_node(fe: DomId) -> Result<Path, PathError> {
    Path::new(format!("{NOTES}/{fe}/qdisk-backend-start"))
}

fn model(fe: DomId) -> Result<Path, PathError> {
    Path::new(format!("device-model/{fe}"))
}

/// Where QEMU says that it serves devices.
pub(super) fn state_node(fe: DomId) -> Result<Path, PathError> {
    model(fe)?.join("state")
}

impl Record {
    pub(super) async fn read(client: &Requests, fe: DomId) -> Result<Self, Error> {
        let nodes = [pid_node(fe)?, own_node(fe)?, state_node(fe)?];
        let mut values = client.read_many(&nodes).await?.into_iter().map(text);
        let mut next = || values.next().flatten();
        Ok(Self::of(next(), next(), next()))
    }

    fn of(pid: Option<String>, own: Option<String>, state: Option<String>) -> Self {
        let is_there = pid.is_some() || own.is_some() || state.is_some();
        let pid: Option<u32> = pid.and_then(|pid| pid.trim().parse().ok());
        let ending = own.as_deref().and_then(|own| own.strip_suffix(ENDING));
        let noted = ending.or(own.as_deref()).and_then(|own| {
            let (noted, start) = own.split_once(' ')?;
            (noted.parse() == Ok(pid?)).then(|| start.parse().ok())?
        });
        Self {
            process: pid.map(|pid| (pid, noted)),
            ending: ending.is_some() && noted.is_some(),
            starting: own.as_deref() == Some(STARTING),
            running: state.as_deref() == Some("running"),
            is_there,
        }
    }
}

/// Notes that a QEMU is about to be started.
pub(super) async fn starts(client: &Client, fe: DomId) -> Result<(), Error> {
    client.write(&own_node(fe)?, STARTING).await
}

/// Notes a QEMU that has been started or found, or that is told to end.
pub(super) async fn runs(client: &Client, fe: DomId, process: ProcessId, ending: bool) -> Result<(), Error> {
    let ProcessId { pid, start } = process;
    let ending = if ending { ENDING } else { "" };
    let write = |path, value: String| Request::Write { path, value: value.into() };
    let requests =
        &vec![write(pid_node(fe)?, pid.to_string()), write(own_node(fe)?, format!("{pid} {start}{ending}"))];
    client.transaction(|tx| async move { tx.all(requests.clone()).await.map(drop) }).await
}

/// Removes what is recorded of a QEMU that has ended, with the parents that it leaves empty.
pub(super) async fn clear(client: &Client, fe: DomId) -> Result<(), Error> {
    let (notes, model) = (&Path::new(NOTES)?, &model(fe)?);
    let nodes = &[own_node(fe)?, pid_node(fe)?];
    client
        .transaction(|tx| async move {
            cleanup::remove_only(&tx, model).await?;
            for node in nodes {
                for path in cleanup::extent(&tx, node, notes).await? {
                    cleanup::remove_only(&tx, &path).await?;
                }
            }
            Ok(())
        })
        .await
}

/// The guests of whose QEMU something is recorded.
pub(in crate::devd) async fn recorded(client: &Requests) -> Result<Vec<DomId>, Error> {
    let names = client.directory_or_empty(&Path::new(NOTES)?).await?;
    let guests: Vec<DomId> = names.iter().filter_map(|name| name.parse().ok().map(DomId)).collect();
    let mut nodes = Vec::with_capacity(2 * guests.len());
    for fe in &guests {
        nodes.extend([pid_node(*fe)?, own_node(*fe)?]);
    }
    let values = client.read_many(&nodes).await?;
    let is_there = values.chunks(2).map(|values| values.iter().any(Option::is_some));
    Ok(guests.into_iter().zip(is_there).filter(|(_, is_there)| *is_there).map(|(fe, _)| fe).collect())
}

/// A QEMU that serves devices of a guest.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ServedQemu {
    /// The guest.
    #[serde(serialize_with = "domid")]
    pub domid: DomId,
    /// Its process; `None` if it is being started.
    pub pid: Option<u32>,
    /// Whether it was told to end, and has not ended yet.
    pub ending: bool,
    /// Whether it has said that it serves devices.
    pub running: bool,
}

/// The QEMUs that are recorded in this domain, by their guests.
///
/// # Errors
///
/// If the store fails.
pub async fn qemus(client: &Client) -> Result<Vec<ServedQemu>, Error> {
    let mut all = Vec::new();
    for fe in recorded(client).await? {
        let Record { process, ending, running, .. } = Record::read(client, fe).await?;
        all.push(ServedQemu { domid: fe, pid: process.map(|(pid, _)| pid), ending, running });
    }
    all.sort_by_key(|qemu| qemu.domid.0);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_believed_only_with_its_own_number() {
        let record = |pid: Option<&str>, own: Option<&str>| {
            let text = |text: &str| text.to_owned();
            Record::of(pid.map(text), own.map(text), None).process
        };
        assert_eq!(record(Some("7"), Some("7 99")), Some((7, Some(99))));
        assert_eq!(record(Some("7\n"), None), Some((7, None)), "of another daemon");
        assert_eq!(record(Some("7"), Some("8 99")), Some((7, None)), "another daemon has started one since");
        assert_eq!(record(Some("7"), Some("7 -")), Some((7, None)));
        assert_eq!(record(Some("-7"), Some("7 99")), None);
        assert_eq!(record(Some("7"), Some("7 99 ending")), Some((7, Some(99))));
        let ending = |own: &str| Record::of(Some("7".to_owned()), Some(own.to_owned()), None).ending;
        assert_eq!(["7 99 ending", "7 99", "8 99 ending"].map(ending), [true, false, false]);
        assert!(Record::of(None, Some(STARTING.to_owned()), None).starting);
    }
}
