//! The way that there is on this machine, as libxenstore finds it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use tokio_util::either::Either;

use super::{Connect, FirstOf, SocketStream, UnixSocket, Xenbus, XenbusStream};
use crate::places::all_places;

/// The first store that can be reached of several places, each a socket or a device: [`FirstOf`].
/// Which of the two one is, is told by its file type.
///
/// The place that was found stays the only one for further connections. A daemon that restarts is
/// waited for at its socket: the device, which is there meanwhile, may lead to another store, and
/// serves one request at a time.
#[derive(Clone, Debug)]
pub struct Auto(FirstOf<Place>);

impl Auto {
    /// The places where libxenstore looks: `$XENSTORED_PATH` alone if it is set; else
    /// [`crate::default_socket`], `/dev/xen/xenbus`, `/proc/xen/xenbus`.
    pub fn new() -> Self {
        Self::among(all_places())
    }

    /// These places, in this order.
    pub fn among(places: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(FirstOf::new(places.into_iter().map(|path| Place { path, is_device: false })))
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
        self.0.at()
    }

    async fn connect(&mut self) -> io::Result<Self::Transport> {
        self.0.connect().await
    }

    /// 1 on a device.
    fn window(&self) -> usize {
        self.0.window()
    }

    /// A device is not.
    fn is_ordered(&self) -> bool {
        self.0.is_ordered()
    }
}

/// A socket or a device.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Which of the two it was at the last attempt.
    is_device: bool,
}

impl Connect for Place {
    type Transport = Either<SocketStream, XenbusStream>;

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    async fn connect(&mut self) -> io::Result<Self::Transport> {
        self.is_device = !fs::metadata(&self.path)?.file_type().is_socket();
        if self.is_device {
            Ok(Either::Right(Xenbus::new(&self.path).open()?))
        } else {
            Ok(Either::Left(UnixSocket::new(&self.path).connect().await?))
        }
    }

    fn window(&self) -> usize {
        if self.is_device { Xenbus::new(&self.path).window() } else { usize::MAX }
    }

    fn is_ordered(&self) -> bool {
        !self.is_device || Xenbus::new(&self.path).is_ordered()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path as FsPath;

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
