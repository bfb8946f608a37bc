//! A way to a store that a test can shut and open.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::task::AbortHandle;
use xs_client::{Client, Config, Connect, DomId};
use xs_store::Store;

#[derive(Clone, Debug, Default)]
pub(crate) struct Door(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    store: Option<Store>,
    connections: Vec<AbortHandle>,
    /// Attempts to connect that came to a shut door.
    refused: usize,
}

impl Door {
    pub(crate) fn open(&self, store: &Store) {
        self.0.lock().unwrap().store = Some(store.clone());
    }

    /// Ends all connections, and lets nobody in.
    pub(crate) fn shut(&self) {
        let mut state = self.0.lock().unwrap();
        state.store = None;
        state.connections.drain(..).for_each(|connection| connection.abort());
    }

    pub(crate) fn refused(&self) -> usize {
        self.0.lock().unwrap().refused
    }
}

impl Connect for Door {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "the door".into()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        let mut state = self.0.lock().unwrap();
        let Some(store) = &state.store else {
            state.refused += 1;
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let mut inside = store.connect(DomId::DOM0);
        let (near, mut far) = duplex(64 << 10);
        let task = tokio::spawn(async move {
            _ = copy_bidirectional(&mut far, &mut inside).await;
        });
        state.connections.push(task.abort_handle());
        Ok(near)
    }
}

/// A client of a new store behind a door.
pub(crate) async fn client(config: Config) -> (Client, Door, Store) {
    let (store, door) = (Store::new(), Door::default());
    door.open(&store);
    (Client::connect_with(door.clone(), config).await.unwrap(), door, store)
}
