//! What a connection runs over: any byte stream. Xenstore's Unix socket is the usual one.

use std::env;
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::Error;

/// A byte stream to a store. Implemented for every type that can be one: a `UnixStream`, one end
/// of `tokio::io::duplex`, your own.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

/// Where xenstored listens: `$XENSTORED_PATH`, else `$XENSTORED_RUNDIR/socket`, else
/// `/run/xenstored/socket`, as libxenstore has it.
pub fn default_socket() -> PathBuf {
    if let Some(path) = env::var_os("XENSTORED_PATH") {
        return path.into();
    }
    let run_dir = env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| "/run/xenstored".into());
    PathBuf::from(run_dir).join("socket")
}

/// Connects to a socket. The daemon accepts one connection per turn and its backlog is one, so a
/// refusal for a full backlog is tried again until the deadline.
pub(crate) async fn unix(path: &FsPath, deadline: Duration) -> Result<UnixStream, Error> {
    let until = Instant::now() + deadline;
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => {
                let (at, reason) = (path.display().to_string(), error.to_string().into());
                return Err(Error::Connect { at, reason });
            }
        }
    }
}
