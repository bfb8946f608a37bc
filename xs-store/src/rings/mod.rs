//! Guests on rings, under a hypervisor that is a folder of files.
//!
//! So that the store can be tested as a daemon with everything that domains do: they come and go,
//! shut down, are introduced twice, and write into the page they share with it whatever they like.
//! [`folder`] is the hypervisor, [`guest`] the server's end of one ring, and [`TestDomains`]
//! drives both.

mod folder;
mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{pending, ready};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use xs_proto::DomId;

use crate::pressure::PATIENCE;
use crate::server::{State, Store};
use folder::Folder;
use guest::{Guest, Turn};

/// The longest message on an event channel: a letter and a number.
const SIGNAL_MAX: usize = 16;

/// Events that are taken at once, before guests have their turn.
const SIGNALS_MAX: usize = 64;

/// The domains of a folder that stands for the hypervisor.
///
/// | file | what it is |
/// | --- | --- |
/// | `domN` | domain N exists; it holds `s` once it has shut down, `c` if it crashed, `d` while it dies |
/// | `ringN` | the 4096 bytes of its ring page, mapped when it is introduced |
/// | `evtchn` | a datagram socket, bound by the store: `PN` is an event of domain N, `V` says that some domain changed |
/// | `guest.N` | a datagram socket that a guest may bind, to be told of events |
///
/// With such a folder a domain exists while its file does, and not from when it connects.
#[derive(Debug)]
pub struct TestDomains {
    store: Store,
    folder: Folder,
    events: UnixDatagram,
    /// What guests are told by. It is not Tokio's: the full queue of one guest would be believed to be
    /// that of all.
    bell: std::os::unix::net::UnixDatagram,
    guests: BTreeMap<DomId, Guest>,
    wake: Arc<Notify>,
}

impl TestDomains {
    /// Makes the folder the hypervisor of a store that serves nobody yet, and takes over the
    /// event channel: a socket of that name is replaced.
    ///
    /// # Errors
    ///
    /// If the folder cannot be written to.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(store: &Store, folder: impl AsRef<Path>) -> io::Result<Self> {
        let path = folder.as_ref().join("evtchn");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let events = UnixDatagram::bind(path)?;
        let bell = std::os::unix::net::UnixDatagram::unbound()?;
        bell.set_nonblocking(true)?;
        let wake = Arc::new(Notify::new());
        let folder = Folder::new(folder.as_ref(), wake.clone());
        store.lock().core.domains.set_hypervisor(Box::new(folder.clone()));
        Ok(Self { store: store.clone(), folder, events, bell, guests: BTreeMap::new(), wake })
    }

    /// Serves the domains until the event channel fails; that error is returned.
    ///
    /// Dropping the future leaves the domains unserved; what they have in the store stays.
    ///
    /// # Panics
    ///
    /// If the time of the tokio runtime is not enabled.
    pub async fn serve(mut self) -> io::Error {
        let mut more = BTreeSet::new();
        loop {
            // All are looked at if the store has something for one of them, as it does not say
            // for which; an event is of one.
            let since = self.guests.values().filter_map(Guest::waiting).min();
            tokio::select! {
                () = self.wake.notified() => more.extend(self.everybody()),
                () = patience(since) => more.extend(self.stop_waiting()),
                readable = self.events.readable() => match readable.and_then(|()| self.signals()) {
                    Ok(domids) => more.extend(domids),
                    Err(error) => return error,
                },
                () = ready(()), if !more.is_empty() => {}
            }
            self.round(&mut more);
            // Nobody waits for a guest that always has one more request: in between all else is looked at.
            if !more.is_empty() {
                yield_now().await;
            }
        }
    }

    /// Lets those go on who have waited for long enough.
    fn stop_waiting(&mut self) -> BTreeSet<DomId> {
        let store = self.store.clone();
        let mut state = store.lock();
        let now = Instant::now();
        for guest in self.guests.values_mut() {
            if guest.waiting().is_some_and(|since| since + PATIENCE <= now) {
                guest.stop_waiting(&mut state.core);
            }
        }
        state.wake();
        self.guests.keys().copied().collect()
    }

    fn everybody(&mut self) -> BTreeSet<DomId> {
        let store = self.store.clone();
        self.take_fresh(&mut store.lock());
        self.guests.keys().copied().collect()
    }

    /// Whom the events that have arrived are about.
    fn signals(&mut self) -> io::Result<BTreeSet<DomId>> {
        let (mut signal, mut domids) = ([0; SIGNAL_MAX], BTreeSet::new());
        for _ in 0..SIGNALS_MAX {
            match self.events.try_recv(&mut signal) {
                Ok(length) => domids.append(&mut self.signal(&signal[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(domids)
    }

    /// Whom an event is about.
    fn signal(&mut self, signal: &[u8]) -> BTreeSet<DomId> {
        match signal {
            [b'V', ..] => {
                let store = self.store.clone();
                let mut state = store.lock();
                state.core.look_at_domains();
                state.wake();
            }
            [b'P', number @ ..] => {
                let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
                return number.into_iter().collect();
            }
            other => debug!(?other, "not an event"),
        }
        BTreeSet::new()
    }

    /// Gives each of the domains its turn, and leaves those that want another.
    fn round(&mut self, pending: &mut BTreeSet<DomId>) {
        let store = self.store.clone();
        let mut state = store.lock();
        self.take_fresh(&mut state);
        pending.retain(|domid| {
            let Some(guest) = self.guests.get_mut(domid) else { return false };
            let turn = guest.turn(&mut state.core);
            if guest.take_notify() {
                // A guest that does not listen looks by itself, or not at all.
                let _ = self.bell.send_to(b"n", self.folder.guest_socket(*domid));
            }
            if turn == Turn::Gone {
                disconnect(&mut state, guest);
                self.guests.remove(domid);
            }
            turn == Turn::More
        });
        state.wake();
    }

    /// Takes over the rings of domains that were introduced. It must be done before any ring is
    /// looked at, since a domain that was introduced again has its indexes reset.
    fn take_fresh(&mut self, state: &mut State) {
        for (domid, end) in self.folder.take_fresh() {
            if let Some(guest) = self.guests.get_mut(&domid).filter(|guest| guest.is_served(&mut state.core))
            {
                guest.begin_anew(end, &mut state.core);
                continue;
            }
            let conn = state.core.connect(domid, false);
            state.tasks.insert(conn, self.wake.clone());
            if let Some(before) = self.guests.insert(domid, Guest::new(conn, end)) {
                disconnect(state, &before);
            }
        }
    }
}

/// Forgets the connection of a domain that has ended.
fn disconnect(state: &mut State, guest: &Guest) {
    state.core.disconnect(guest.conn());
    state.tasks.remove(&guest.conn());
}

/// Ends when who waits since then has waited for long enough.
async fn patience(since: Option<Instant>) {
    match since {
        Some(since) => sleep_until(since + PATIENCE).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_domain_that_has_ended_leaves_no_connection() {
        const DOMID: DomId = DomId(7);
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("ring7"), [0; 4096]).unwrap();
        std::fs::write(file("dom7"), "").unwrap();
        let store = Store::new();
        let mut domains = TestDomains::new(&store, directory.path()).unwrap();
        // Its end is noticed before the next one of its number is introduced, or only then.
        for noticed in [true, false, true] {
            store.lock().core.domains.connect(DOMID).unwrap();
            store.introduce(DOMID);
            domains.round(&mut BTreeSet::from([DOMID]));
            assert_eq!(store.lock().core.connections().count(), 1);
            store.release(DOMID);
            if noticed {
                domains.round(&mut BTreeSet::from([DOMID]));
                assert_eq!(store.lock().core.connections().count(), 0);
                assert!(store.lock().tasks.is_empty());
            }
        }
    }
}
