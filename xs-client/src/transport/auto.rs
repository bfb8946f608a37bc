//! The way that there is on this machine, as libxenstore finds it.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path as FsPath, PathBuf};

use tokio_util::either::Either;

use super::xenbus::DEVICES;
use super::{Connect, SocketStream, UnixSocket, Xenbus, XenbusStream, default_socket};

/// The first store that can be reached of several places, each a socket or a device. Which of the
/// two one is, is told by its file type.
///
/// When none can be reached, the error tells what was observed at each. A store that has no time
/// now ([`io::ErrorKind::WouldBlock`]) is one that can be reached: no other is tried then.
///
/// The place that was found stays the only one for further connections. A daemon that restarts is
/// waited for at its socket: the device, which is there meanwhile, may lead to another store, and
/// serves one request at a time.
#[derive(Clone, Debug)]
pub struct Auto {
    places: Vec<PathBuf>,
    found: Option<Found>,
}

/// Where the first connection went.
#[derive(Clone, Debug)]
struct Found {
    place: PathBuf,
    window: usize,
    is_ordered: bool,
}

impl Found {
    fn new(place: &FsPath, way: &impl Connect) -> Self {
        Self { place: place.into(), window: way.window(), is_ordered: way.is_ordered() }
    }
}

impl Auto {
    /// The places where libxenstore looks: `$XENSTORED_PATH` alone if it is set; else
    /// [`default_socket`], `/dev/xen/xenbus`, `/proc/xen/xenbus`.
    pub fn new() -> Self {
        Self::among(places())
    }

    /// These places, in this order.
    pub fn among(places: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { places: places.into_iter().collect(), found: None }
    }
}

impl Default for Auto {
    fn default() -> Self {
        Self::new()
    }
}

impl Connect for Auto {
    type Transport = Either<SocketStream, XenbusStream>;

    /// Where the first connection went, or the only place.
    fn at(&self) -> String {
        match &self.found {
            Some(Found { place, .. }) => place.display().to_string(),
            None => any_of(&self.places),
        }
    }

    async fn connect(&mut self) -> io::Result<Self::Transport> {
        if let Some(found) = &self.found {
            return Ok(connect(&found.place).await?.0);
        }
        let mut unreachable = Unreachable::default();
        for place in &self.places {
            match connect(place).await {
                Ok((transport, found)) => {
                    self.found = Some(found);
                    return Ok(transport);
                }
                Err(error) => unreachable.add(place, &error)?,
            }
        }
        Err(unreachable.into_error())
    }

    /// 1 on a device.
    fn window(&self) -> usize {
        self.found.as_ref().map_or(usize::MAX, |found| found.window)
    }

    /// A device is not.
    fn is_ordered(&self) -> bool {
        self.found.as_ref().is_none_or(|found| found.is_ordered)
    }
}

/// Where libxenstore looks.
fn places() -> Vec<PathBuf> {
    match env::var_os("XENSTORED_PATH") {
        Some(path) => vec![path.into()],
        None => [default_socket()].into_iter().chain(DEVICES.map(PathBuf::from)).collect(),
    }
}

/// What a message calls these places.
fn any_of(places: &[PathBuf]) -> String {
    match places {
        [place] => place.display().to_string(),
        places => format!("any of {} places", places.len()),
    }
}

/// What was observed at places that cannot be reached.
#[derive(Debug, Default)]
struct Unreachable {
    kind: Option<io::ErrorKind>,
    observed: Vec<String>,
}

impl Unreachable {
    /// Takes note of an error, or fails if that ends the search: a store without time is one that
    /// can be reached.
    fn add(&mut self, place: &FsPath, error: &io::Error) -> io::Result<()> {
        let text = format!("{}: {error}", place.display());
        if error.kind() == io::ErrorKind::WouldBlock {
            return Err(io::Error::new(error.kind(), text));
        }
        // The first that is there and cannot be reached says more than those that are not.
        if error.kind() != io::ErrorKind::NotFound {
            self.kind.get_or_insert(error.kind());
        }
        self.observed.push(text);
        Ok(())
    }

    /// All that was observed.
    fn into_error(self) -> io::Error {
        io::Error::new(self.kind.unwrap_or(io::ErrorKind::NotFound), self.observed.join("; "))
    }
}

async fn connect(place: &FsPath) -> io::Result<(Either<SocketStream, XenbusStream>, Found)> {
    if fs::metadata(place)?.file_type().is_socket() {
        let mut socket = UnixSocket::new(place);
        Ok((Either::Left(socket.connect().await?), Found::new(place, &socket)))
    } else {
        let device = Xenbus::new(place);
        Ok((Either::Right(device.open()?), Found::new(place, &device)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_first_place_with_a_store_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (none, socket) = (folder.path().join("none"), folder.path().join("socket"));
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut auto = Auto::among([none, socket.clone(), folder.path().into()]);
        assert_eq!(auto.at(), "any of 3 places");
        assert!(matches!(auto.connect().await, Ok(Either::Left(_))));
        assert_eq!(auto.at(), socket.display().to_string());
        assert_eq!(auto.window(), usize::MAX);
    }

    /// The store behind the device may be another one, and the device is another kind of way.
    #[tokio::test]
    async fn once_found_it_is_the_way_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, device) = (folder.path().join("socket"), folder.path().join("device"));
        let listener = UnixListener::bind(&socket).unwrap();
        fs::write(&device, "").unwrap();
        let mut auto = Auto::among([socket.clone(), device]);
        assert!(matches!(auto.connect().await, Ok(Either::Left(_))));
        drop(listener);
        assert_eq!(auto.connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        fs::remove_file(&socket).unwrap();
        assert_eq!(auto.connect().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!((auto.at(), auto.window()), (socket.display().to_string(), usize::MAX));
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(matches!(auto.connect().await, Ok(Either::Left(_))));
    }

    #[tokio::test]
    async fn an_error_tells_what_was_observed_at_each_place() {
        let folder = tempfile::tempdir().unwrap();
        let (none, stale) = (folder.path().join("none"), folder.path().join("stale"));
        drop(UnixListener::bind(&stale).unwrap());
        let error = Auto::among([none, stale, folder.path().into()]).connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let folder = folder.path().display();
        let expected = format!(
            "{folder}/none: No such file or directory (os error 2); \
             {folder}/stale: Connection refused (os error 111); \
             {folder}: Is a directory (os error 21)"
        );
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn a_store_without_time_is_waited_for_and_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (busy, other) = (folder.path().join("busy"), folder.path().join("other"));
        let _other = UnixListener::bind(&other).unwrap();
        let listener = busy_listener(&busy);
        let mut auto = Auto::among([busy, other]);
        let mut waiting = Vec::new();
        let error = loop {
            match auto.connect().await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "the backlog is never full");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(&waiting[..], [Either::Left(_), ..]));
        drop(listener);
    }

    /// A listener with a backlog of one, as the daemons have it.
    fn busy_listener(path: &FsPath) -> UnixListener {
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(path).unwrap();
        socket.listen(1).unwrap()
    }
}
