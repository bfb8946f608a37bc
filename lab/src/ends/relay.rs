//! A socket between xendev and the store, which stays where it is when the store comes and goes.
//!
//! It can hold back the next request of xendev that changes something: then xendev waits for a store
//! that does not answer, at a step that is known. What scripts ask for is never held back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use xs_proto::{HEADER_LEN, Header, Op, PAYLOAD_MAX};

/// The relay. Dropping it ends all its connections.
#[derive(Debug)]
pub(super) struct Relay {
    socket: PathBuf,
    valve: Arc<Valve>,
    serving: Option<JoinHandle<()>>,
}

/// What holds requests back.
#[derive(Debug)]
struct Valve {
    /// The program whose requests are held back.
    program: PathBuf,
    closed: watch::Sender<bool>,
    /// Whether a request waits.
    holding: watch::Sender<bool>,
}

impl Relay {
    /// A relay at this socket, not open yet.
    pub(super) fn new(socket: PathBuf, program: &Path) -> Self {
        let (closed, holding) = (watch::Sender::new(false), watch::Sender::new(false));
        let valve = Arc::new(Valve { program: program.to_owned(), closed, holding });
        Self { socket, valve, serving: None }
    }

    /// Takes connections, for the store at `upstream`.
    pub(super) fn open(&mut self, upstream: PathBuf) -> io::Result<()> {
        self.close();
        let listener = UnixListener::bind(&self.socket)?;
        self.serving = Some(tokio::spawn(serve(listener, upstream, self.valve.clone())));
        Ok(())
    }

    /// Cuts all connections; there is nobody at the socket any more.
    pub(super) fn close(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Somebody else may have removed it.
            _ = fs::remove_file(&self.socket);
        }
    }

    /// From now on holds back the program's requests at the first that changes something.
    pub(super) fn hold(&self) {
        self.valve.closed.send_replace(true);
    }

    /// Lets go what was held back.
    pub(super) fn release(&self) {
        self.valve.closed.send_replace(false);
    }

    /// Whether a request is held back.
    pub(super) fn is_holding(&self) -> bool {
        *self.valve.holding.borrow()
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(listener: UnixListener, upstream: PathBuf, valve: Arc<Valve>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                let (upstream, valve) = (upstream.clone(), valve.clone());
                // Whichever side fails, the other sees the end of the connection.
                connections.spawn(async move { _ = pass(client, &upstream, &valve).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass(client: UnixStream, upstream: &Path, valve: &Valve) -> io::Result<()> {
    let pid = client.peer_cred()?.pid();
    let is_held = pid.is_some_and(|pid| valve.is_for(pid));
    let (mut from_client, mut into_client) = client.into_split();
    let (mut from_store, mut into_store) = UnixStream::connect(upstream).await?.into_split();
    let requests = async {
        let mut message = vec![0; HEADER_LEN];
        loop {
            message.resize(HEADER_LEN, 0);
            from_client.read_exact(&mut message).await?;
            let mut head = [0; HEADER_LEN];
            head.copy_from_slice(&message);
            let Header { op, len, .. } = Header::decode(&head);
            let length = usize::try_from(len).unwrap_or(usize::MAX);
            if length > PAYLOAD_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            message.resize(HEADER_LEN + length, 0);
            from_client.read_exact(&mut message[HEADER_LEN..]).await?;
            if is_held && changes(op) {
                valve.wait().await;
            }
            into_store.write_all(&message).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = tokio::io::copy(&mut from_store, &mut into_client) => ended.map(drop),
    }
}

/// Whether a request changes something, or begins to.
fn changes(op: Op) -> bool {
    [Op::WRITE, Op::MKDIR, Op::RM, Op::SET_PERMS, Op::TRANSACTION_START].contains(&op)
}

impl Valve {
    /// Whether this process is the program.
    fn is_for(&self, pid: i32) -> bool {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == self.program)
    }

    async fn wait(&self) {
        let mut closed = self.closed.subscribe();
        if *closed.borrow_and_update() {
            self.holding.send_replace(true);
            // The sender is in `self`.
            _ = closed.wait_for(|closed| !closed).await;
            self.holding.send_replace(false);
        }
    }
}
