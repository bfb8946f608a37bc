//! Xenstore's Unix socket.

use std::env;
use std::io;
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::Connect;

/// Where xenstored listens: `$XENSTORED_PATH`, else `$XENSTORED_RUNDIR/socket`, else
/// `/run/xenstored/socket`, as libxenstore has it.
pub fn default_socket() -> PathBuf {
    if let Some(path) = env::var_os("XENSTORED_PATH") {
        return path.into();
    }
    let run_dir = env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| "/run/xenstored".into());
    PathBuf::from(run_dir).join("socket")
}

/// A store's Unix socket. Who can connect to it is privileged.
///
/// A connect fails with [`io::ErrorKind::WouldBlock`] while the backlog of the daemon, which is
/// one, is full: it accepts one connection per turn. Try again a few milliseconds later.
#[derive(Clone, Debug)]
pub struct UnixSocket {
    path: PathBuf,
}

impl UnixSocket {
    /// The socket at a path, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Connect for UnixSocket {
    type Transport = UnixStream;

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    async fn connect(&mut self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.path).await
    }
}
