//! The page as it lies in memory.

use core::fmt;

#[cfg(not(all(test, loom)))]
pub(super) use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
#[cfg(all(test, loom))]
pub(super) use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// Bytes in the page.
pub const PAGE_SIZE: usize = 4096;

/// Bytes in each of its two rings (`XENSTORE_RING_SIZE`). All of them may be used.
#[cfg(not(all(test, loom)))]
pub const RING_SIZE: usize = 1024;
/// As few as make a ring that wraps: loom tries every order of what is done to them.
#[cfg(all(test, loom))]
pub const RING_SIZE: usize = 4;

/// `connection`: the steady state.
pub(super) const CONNECTED: u32 = 0;
/// `connection`: the guest wants to begin anew, or must not begin yet.
pub(super) const RECONNECT: u32 = 1;

/// The page that a guest and its server share.
///
/// Indexes run freely through all of `u32`; the difference of two is the number of bytes in the
/// ring, and byte `i` is at `i % 1024`. Integers are in the byte order of the machine. The fields
/// are there to be read and written, by a domain builder for example; [`super::ClientEnd`] and
/// [`super::ServerEnd`] expect the worst of them.
///
/// Source: `struct xenstore_domain_interface` in `xen/include/public/io/xs_wire.h`; the names are
/// those of the header.
#[repr(C)]
pub struct Page {
    /// Requests, from the guest to the server.
    pub req: [AtomicU8; RING_SIZE],
    /// Replies and watch events, from the server to the guest.
    pub rsp: [AtomicU8; RING_SIZE],
    /// How far the server has read the requests. The server's.
    pub req_cons: AtomicU32,
    /// How far the guest has written requests. The guest's.
    pub req_prod: AtomicU32,
    /// How far the guest has read the replies. The guest's.
    pub rsp_cons: AtomicU32,
    /// How far the server has written replies. The server's.
    pub rsp_prod: AtomicU32,
    /// What the server offers, as [`crate::Features`]. C servers before 4.21 leave it as it is.
    pub server_features: AtomicU32,
    /// 0: connected. 1: the guest asks to begin anew and ignores the page until it reads 0; or
    /// the builder of the domain says that the server is not there yet.
    pub connection: AtomicU32,
    /// Why the server gave the connection up, as [`super::RingFault`]; 0 if it did not.
    pub error: AtomicU32,
    /// The guest's event channel, entered by its builder (since 4.21); 0 means the one that
    /// INTRODUCE named. For a server it is a number that a guest may have chosen.
    pub evtchn_port: AtomicU32,
    #[cfg(not(all(test, loom)))]
    unused: [AtomicU8; 2016],
}

#[cfg(not(all(test, loom)))]
const _: () = {
    use core::mem::{offset_of, size_of};

    assert!(size_of::<Page>() == PAGE_SIZE);
    assert!(offset_of!(Page, req) == 0);
    assert!(offset_of!(Page, rsp) == 1024);
    assert!(offset_of!(Page, req_cons) == 2048);
    assert!(offset_of!(Page, req_prod) == 2052);
    assert!(offset_of!(Page, rsp_cons) == 2056);
    assert!(offset_of!(Page, rsp_prod) == 2060);
    assert!(offset_of!(Page, server_features) == 2064);
    assert!(offset_of!(Page, connection) == 2068);
    assert!(offset_of!(Page, error) == 2072);
    assert!(offset_of!(Page, evtchn_port) == 2076);
};

impl Page {
    /// A page of zeros, for two ends in one program.
    pub fn new() -> Self {
        Self {
            req: zeros(),
            rsp: zeros(),
            req_cons: AtomicU32::new(0),
            req_prod: AtomicU32::new(0),
            rsp_cons: AtomicU32::new(0),
            rsp_prod: AtomicU32::new(0),
            server_features: AtomicU32::new(0),
            connection: AtomicU32::new(CONNECTED),
            error: AtomicU32::new(0),
            evtchn_port: AtomicU32::new(0),
            #[cfg(not(all(test, loom)))]
            unused: zeros(),
        }
    }
}

fn zeros<const N: usize>() -> [AtomicU8; N] {
    core::array::from_fn(|_| AtomicU8::new(0))
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Page {
    /// The fields, not what is in the rings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("req_cons", &self.req_cons),
            ("req_prod", &self.req_prod),
            ("rsp_cons", &self.rsp_cons),
            ("rsp_prod", &self.rsp_prod),
            ("server_features", &self.server_features),
            ("connection", &self.connection),
            ("error", &self.error),
            ("evtchn_port", &self.evtchn_port),
        ];
        let mut page = f.debug_struct("Page");
        for (name, field) in fields {
            page.field(name, &field.load(Ordering::Relaxed));
        }
        page.finish_non_exhaustive()
    }
}
