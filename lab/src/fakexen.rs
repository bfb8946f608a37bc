//! The stand-in hypervisor, seen from outside: which domains exist, and their ring pages.
//!
//! `fakexen.c` gives a real daemon the few calls it makes to Xen. Behind them is nothing but a
//! folder of files, so a test creates a domain by writing one and acts as its guest by mapping the
//! file that is its ring page, as the daemon does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::ReadBuf;
use xs_client::transport;
use xs_proto::DomId;
use xs_proto::ring::{ClientEnd, Mapping, PAGE_SIZE, RING_SIZE};

/// The folder that stands for the hypervisor.
#[derive(Clone, Debug)]
pub struct FakeXen {
    folder: PathBuf,
}

impl FakeXen {
    /// The hypervisor of a daemon that was started with this folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Makes a domain exist, with a fresh ring page.
    pub fn create(&self, domid: DomId) -> io::Result<()> {
        // A new file and not the old one emptied: the daemon may have that one mapped.
        remove_if_there(&self.file("ring", domid))?;
        fs::write(self.file("ring", domid), [0; PAGE_SIZE])?;
        fs::write(self.file("dom", domid), "")
    }

    /// Shuts a domain down and tells the daemon.
    pub fn shut_down(&self, domid: DomId) -> io::Result<()> {
        fs::write(self.file("dom", domid), "s")?;
        self.signal("V")
    }

    /// Lets a domain crash and tells the daemon.
    pub fn crash(&self, domid: DomId) -> io::Result<()> {
        fs::write(self.file("dom", domid), "c")?;
        self.signal("V")
    }

    /// Ends a domain and tells the daemon.
    pub fn destroy(&self, domid: DomId) -> io::Result<()> {
        remove_if_there(&self.file("dom", domid))?;
        self.signal("V")
    }

    /// Removes what is left of a domain, without a word to the daemon.
    pub fn forget(&self, domid: DomId) -> io::Result<()> {
        remove_if_there(&self.file("dom", domid))?;
        remove_if_there(&self.file("ring", domid))
    }

    /// The guest's end of a domain's ring.
    pub fn ring(&self, domid: DomId) -> io::Result<Ring> {
        let page = self.page(domid)?;
        let end = ClientEnd::attach(Mapping::new(&page)?).map_err(io::Error::other)?;
        Ok(Ring { xen: self.clone(), domid, page, end })
    }

    /// The guest's end of a domain's event channel: each datagram is an event. Without it the
    /// events of a domain are lost, which does no harm to who looks at its ring now and then. Who
    /// listened before hears nothing any more.
    pub fn events(&self, domid: DomId) -> io::Result<UnixDatagram> {
        remove_if_there(&self.file("guest.", domid))?;
        UnixDatagram::bind(self.file("guest.", domid))
    }

    /// A domain's way to its daemon, over its ring. Must be called in a Tokio runtime; who listened
    /// to the events of the domain before hears nothing any more.
    pub fn way(&self, domid: DomId) -> io::Result<transport::Ring<Mapping, Doorbell>> {
        let page = self.page(domid)?;
        let events = self.events(domid)?;
        events.set_nonblocking(true)?;
        let doorbell = Doorbell { xen: self.clone(), domid, events: events.try_into()? };
        Ok(transport::Ring::new(Mapping::new(page)?, doorbell))
    }

    fn page(&self, domid: DomId) -> io::Result<File> {
        File::options().read(true).write(true).open(self.file("ring", domid))
    }

    fn file(&self, kind: &str, domid: DomId) -> PathBuf {
        self.folder.join(format!("{kind}{domid}"))
    }

    /// Raises an event channel of the daemon, or with `V` the interrupt that says that some
    /// domain changed.
    fn signal(&self, event: &str) -> io::Result<()> {
        UnixDatagram::unbound()?.send_to(event.as_bytes(), self.folder.join("evtchn")).map(|_| ())
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A guest's end of its event channel, for a client.
#[derive(Debug)]
pub struct Doorbell {
    xen: FakeXen,
    domid: DomId,
    events: tokio::net::UnixDatagram,
}

impl transport::Events for Doorbell {
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.events.poll_recv(cx, &mut ReadBuf::new(&mut [0; 8]))
    }

    fn notify(&self) -> io::Result<()> {
        self.xen.signal(&format!("P{}", self.domid))
    }
}

/// The guest's end of a ring, and the page itself for tests of its edges.
///
/// Nothing here waits: who finds the ring full or empty waits for an event, or asks again later.
#[derive(Debug)]
pub struct Ring {
    xen: FakeXen,
    domid: DomId,
    page: File,
    end: ClientEnd<Mapping>,
}

impl Ring {
    /// Reads a field of the page.
    pub fn field(&self, offset: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.page.read_exact_at(&mut bytes, offset)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Sets a field of the page, also one that is the end's own.
    pub fn set_field(&self, offset: u64, value: u32) -> io::Result<()> {
        self.page.write_all_at(&value.to_le_bytes(), offset)
    }

    /// The end itself. Who publishes something with it notifies the daemon.
    pub fn end(&mut self) -> &mut ClientEnd<Mapping> {
        &mut self.end
    }

    /// Tells the daemon that something in the page changed.
    pub fn notify(&self) -> io::Result<()> {
        self.xen.signal(&format!("P{}", self.domid))
    }

    /// Sends as many bytes as there is room for; returns how many these were.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.end.send(bytes).map_err(io::Error::other)?;
        self.notify_if_owed()?;
        Ok(sent)
    }

    /// Appends what is there; returns how many bytes these were, which may be none.
    pub fn receive(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let received = self.end.receive(into, RING_SIZE).map_err(io::Error::other)?;
        self.notify_if_owed()?;
        Ok(received)
    }

    fn notify_if_owed(&mut self) -> io::Result<()> {
        if self.end.take_notify() { self.notify() } else { Ok(()) }
    }
}
