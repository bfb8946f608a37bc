//! One hypercall, over Linux's `/dev/xen/privcmd`: `domctl` with `getdomaininfo`.
//!
//! What a hypercall is given and answers is in memory of this process that the hypervisor reads and writes by
//! its address. Ordinary memory may be swapped out or copied on write just then, so a page of
//! `/dev/xen/hypercall` is used, which Linux (since 4.18) keeps in its place.
//!
//! `unsafe` is allowed here to map that page and to read and write it, and for the call. No other operation can be
//! asked for through this module: the one there is only reads, so no caller can do harm with it, whatever version
//! or domain he names.

use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{Direction, Opcode, Setter, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// As long as every page is at least.
const PAGE: usize = 4096;

/// `__HYPERVISOR_domctl`.
const DOMCTL: u64 = 36;
/// `XEN_DOMCTL_getdomaininfo`.
const GET_DOMAIN_INFO: u32 = 5;

/// `IOCTL_PRIVCMD_HYPERCALL`.
const HYPERCALL: Opcode = opcode::from_components(Direction::None, b'P', 0, size_of::<Hypercall>());

/// `struct privcmd_hypercall`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `struct xen_domctl` with the beginning of `struct xen_domctl_getdomaininfo`. The hypervisor reads and writes 144
/// bytes in all.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Domctl {
    cmd: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    info: Info,
}

const _: () = assert!(offset_of!(Domctl, info) == 16 && size_of::<Domctl>() <= PAGE);

/// What the hypervisor says of a domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Which domain it speaks of.
    pub(super) domain: u16,
    pad: u16,
    /// `XEN_DOMINF_*`.
    pub(super) flags: u32,
}

impl Info {
    pub(super) fn new(domain: u16, flags: u32) -> Self {
        Self { domain, pad: 0, flags }
    }
}

/// The way to the hypervisor.
#[derive(Debug)]
pub(super) struct Privcmd {
    device: OwnedFd,
    page: Page,
}

impl Privcmd {
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = open("/dev/xen/privcmd", flags, Mode::empty())?;
        let memory = open("/dev/xen/hypercall", flags, Mode::empty())?;
        Ok(Self { device, page: Page::of(&memory)? })
    }

    /// What the hypervisor says of a domain, or of the next if it has none of that number. It refuses a
    /// version that it does not have with [`Errno::ACCESS`].
    pub(super) fn domain_info(&mut self, version: u32, domain: u16) -> Result<Info, Errno> {
        let asked = Domctl {
            cmd: GET_DOMAIN_INFO,
            interface_version: version,
            domain,
            pad: [0; 3],
            info: Info::new(0, 0),
        };
        let page = self.page.0.as_ptr();
        // SAFETY: the page is ours alone, and longer than what is written.
        unsafe { ptr::write_volatile(page, asked) };
        let call = Hypercall { op: DOMCTL, arg: [page.addr() as u64, 0, 0, 0, 0] };
        // SAFETY: the type is the one that this ioctl takes.
        let call = unsafe { Setter::<HYPERCALL, Hypercall>::new(call) };
        // SAFETY: this operation changes nothing but its argument, which is in the page.
        unsafe { ioctl(&self.device, call)? };
        // SAFETY: as above; any bytes are values of the type.
        Ok(unsafe { ptr::read_volatile(page) }.info)
    }
}

/// A page that hypercalls can use.
#[derive(Debug)]
struct Page(NonNull<Domctl>);

// SAFETY: it is memory of the process, and of nobody but its owner.
unsafe impl Send for Page {}

impl Page {
    fn of(memory: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a mapping at an address that the kernel chooses takes no memory from anybody.
        let page = unsafe {
            mmap(ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory, 0)?
        };
        NonNull::new(page.cast()).map(Self).ok_or_else(|| Errno::NOMEM.into())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more. That fails for addresses that
        // are no mapping alone.
        _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE) };
    }
}
