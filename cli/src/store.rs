//! `store`: the embedded store as a daemon on a Unix socket.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::json;
use tokio::net::UnixListener;
use xs_store::{Store, TestDomains};

use crate::args::{Common, StoreArgs};
use crate::output::say;
use crate::problem::{Code, Exit, Problem};
use crate::signals::cancel_on_signal;
use crate::world::LONGEST_SOCKET;

pub(crate) async fn run(common: &Common, args: &StoreArgs) -> Result<Exit, Problem> {
    let tried = format!("cannot serve a store at {}", args.socket.display());
    // First, so that a signal never leaves the socket behind.
    let cancel = cancel_on_signal();
    let (listener, _bound) = bind(&args.socket, args.mode)
        .map_err(|(observed, hint)| Problem::new(Code::Serve, &*tried, observed, hint))?;
    let store = Store::new();
    let domains = args.test_domains.as_ref().map(|folder| TestDomains::new(&store, folder)).transpose();
    let domains = domains.map_err(|error| {
        Problem::new(
            Code::Serve,
            &*tried,
            error,
            "name a folder that exists and that you may write to with --test-domains",
        )
    })?;
    let told = !common.quiet || common.json;
    if told {
        tell(common, args);
    }
    let ended = |error: std::io::Error| {
        let mut problem = Problem::new(Code::Serve, &*tried, error, "start it again; its contents are lost");
        problem.told = told;
        problem
    };
    let serve_domains = async {
        match domains {
            Some(domains) => domains.serve().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        error = serve_domains => Err(ended(error)),
        error = store.serve(listener) => Err(ended(error)),
        () = cancel.cancelled() => Ok(Exit::Done),
    }
}

/// One line for whoever waits for the store. If nobody reads it, the store is there all the same.
fn tell(common: &Common, args: &StoreArgs) {
    let path = args.socket.display();
    let line = if common.json {
        json!({"ok": true, "socket": path.to_string(), "pid": process::id()}).to_string()
    } else {
        format!("serving a store at {path}")
    };
    say(line + "\n");
}

/// What was observed, and a hint.
type Refusal = (String, &'static str);

fn bind(path: &Path, mode: u32) -> Result<(UnixListener, Bound), Refusal> {
    if path.as_os_str().len() > LONGEST_SOCKET {
        return Err((format!("it has more than {LONGEST_SOCKET} bytes"), "name a shorter path"));
    }
    remove_stale(path)?;
    // By the mask and not by chmod afterwards, so that nobody else ever could connect. No other
    // thread runs that could create files meanwhile.
    let before = umask(Mode::from_raw_mode(!mode & 0o777));
    let listener = UnixListener::bind(path);
    umask(before);
    let named = |error: io::Error| (error.to_string(), "name a file in a folder that you may write to");
    let listener = listener.map_err(named)?;
    let file = identity(&path.symlink_metadata().map_err(named)?);
    Ok((listener, Bound { path: path.to_owned(), file }))
}

/// Removes a socket that nobody serves, and nothing else.
fn remove_stale(path: &Path) -> Result<(), Refusal> {
    const ELSEWHERE: &str = "name another file with --socket";
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(("there is a file that is no socket".to_owned(), ELSEWHERE));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| (error.to_string(), ELSEWHERE))
        }
        Err(error) => Err((format!("connecting to what is there: {error}"), ELSEWHERE)),
        Ok(_) => Err((
            "somebody serves that socket".to_owned(),
            "use the store that is there, end it, or name another file with --socket",
        )),
    }
}

/// The socket's file, which is removed when this is dropped.
struct Bound {
    path: PathBuf,
    file: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Somebody may have put their own socket in its place.
        if self.path.symlink_metadata().is_ok_and(|found| identity(&found) == self.file) {
            _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
