//! The stand-in hypervisor, seen from outside: which domains exist, and their ring pages.
//!
//! `fakexen.c` gives a real daemon the few calls it makes to Xen. Behind them is nothing but a
//! folder of files, so a test creates a domain by writing one and acts as its guest by reading
//! and writing the file that is its ring page. The page is changed with ordinary file calls and
//! not mapped: the daemon's shared mapping of the same file sees them at once.
//!
//! Source of the page's layout: `xen/include/public/io/xs_wire.h`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use xs_proto::DomId;

/// Bytes in a page, and in each of the two rings at its start.
const PAGE: usize = 4096;
const RING: u32 = 1024;

/// Offsets of the ring indexes in the page.
const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;
/// Where the replies begin; the requests are at the start of the page.
const REPLIES: u64 = 1024;

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
        fs::write(self.file("ring", domid), [0; PAGE])?;
        fs::write(self.file("dom", domid), "")
    }

    /// Shuts a domain down and tells the daemon.
    pub fn shut_down(&self, domid: DomId) -> io::Result<()> {
        fs::write(self.file("dom", domid), "s")?;
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
        let page = File::options().read(true).write(true).open(self.file("ring", domid))?;
        Ok(Ring { xen: self.clone(), domid, page })
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

/// The guest's end of a ring: bytes in, bytes out, and the page itself for tests of its edges.
///
/// Nothing here waits: who finds the ring full or empty asks again later.
#[derive(Debug)]
pub struct Ring {
    xen: FakeXen,
    domid: DomId,
    page: File,
}

impl Ring {
    /// Reads a field of the page.
    pub fn field(&self, offset: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.page.read_exact_at(&mut bytes, offset)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Sets a field of the page.
    pub fn set_field(&self, offset: u64, value: u32) -> io::Result<()> {
        self.page.write_all_at(&value.to_le_bytes(), offset)
    }

    /// Tells the daemon that something in the page changed.
    pub fn notify(&self) -> io::Result<()> {
        self.xen.signal(&format!("P{}", self.domid))
    }

    /// Sends as many bytes as there is room for; returns how many these were.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let (cons, prod) = (self.field(REQ_CONS)?, self.field(REQ_PROD)?);
        let at = prod % RING;
        let room = RING.saturating_sub(prod.wrapping_sub(cons)).min(RING - at);
        let chunk = &bytes[..bytes.len().min(room as usize)];
        if !chunk.is_empty() {
            self.page.write_all_at(chunk, u64::from(at))?;
            self.set_field(REQ_PROD, prod.wrapping_add(chunk.len() as u32))?;
            self.notify()?;
        }
        Ok(chunk.len())
    }

    /// Receives what is there, which may be nothing.
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        let (cons, prod) = (self.field(RSP_CONS)?, self.field(RSP_PROD)?);
        let at = cons % RING;
        let length = prod.wrapping_sub(cons).min(RING - at);
        let mut bytes = vec![0; length as usize];
        if length > 0 {
            self.page.read_exact_at(&mut bytes, REPLIES + u64::from(at))?;
            self.set_field(RSP_CONS, cons.wrapping_add(length))?;
            self.notify()?;
        }
        Ok(bytes)
    }
}
