//! The unsafe part: saying that some address is a page.

use core::ptr::NonNull;

use super::Page;

impl Page {
    /// The page at an address, as a grant mapping or the hypervisor gave it.
    ///
    /// # Safety
    ///
    /// For as long as `'a` lasts:
    ///
    /// - the address is a multiple of 4, and [`super::PAGE_SIZE`] bytes from it on are mapped, to be read
    ///   and written;
    /// - this program accesses them only as a [`Page`], or else atomically.
    ///
    /// What others write there, other programs and other domains, is no concern: every bit
    /// pattern is a valid page, and may change at any time. But that the memory stays mapped is:
    /// a mapping that is revoked, as when its domain ends, faults on access.
    pub unsafe fn from_ptr<'a>(address: NonNull<u8>) -> &'a Self {
        // SAFETY: mapped, aligned and not accessed otherwise, says the caller; the fields are
        // atomic, so that a shared reference to memory that others change is sound.
        unsafe { address.cast().as_ref() }
    }
}

#[cfg(feature = "map")]
pub use map::Mapping;

#[cfg(feature = "map")]
mod map {
    use std::format;
    use std::io;
    use std::ops::Deref;
    use std::ptr::{self, NonNull};

    use rustix::fd::AsFd;
    use rustix::fs::fstat;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use crate::ring::{PAGE_SIZE, Page};

    /// The first page of a file, shared with all who map it: a `memfd`, or a file in `/dev/shm`.
    ///
    /// The file must stay as long as it is. If somebody cuts it shorter, the next access ends
    /// this program with SIGBUS. Whoever makes the file has to prevent that: by handing it only to
    /// those who are trusted not to, or, for a `memfd`, by sealing its size (`F_SEAL_SHRINK`).
    #[derive(Debug)]
    pub struct Mapping {
        page: NonNull<Page>,
    }

    // SAFETY: the mapping belongs to no thread, and a `Page` is atomic throughout.
    unsafe impl Send for Mapping {}
    // SAFETY: as above.
    unsafe impl Sync for Mapping {}

    impl Mapping {
        /// Maps the first page of an open file, which may be closed afterwards.
        ///
        /// # Errors
        ///
        /// As `mmap(2)`; [`io::ErrorKind::InvalidInput`] for a file that is shorter than a page.
        pub fn new(file: impl AsFd) -> io::Result<Self> {
            let length = fstat(&file)?.st_size;
            if length < PAGE_SIZE as i64 {
                let text = format!("a ring page needs {PAGE_SIZE} bytes, and the file has {length}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the kernel chooses the address, so no memory of this program is replaced.
            let address = unsafe { mmap(ptr::null_mut(), PAGE_SIZE, access, MapFlags::SHARED, file, 0) }?;
            let page = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { page })
        }
    }

    impl Deref for Mapping {
        type Target = Page;

        fn deref(&self) -> &Page {
            // SAFETY: mapped until `self` is dropped, at an address that is a multiple of the
            // page size; nobody else in this program knows it.
            unsafe { Page::from_ptr(self.page.cast()) }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: this is the mapping that was made in `new`; whoever borrowed the page from
            // `self` is done.
            let unmapped = unsafe { munmap(self.page.as_ptr().cast(), PAGE_SIZE) };
            // It fails only for addresses that no mapping can have.
            debug_assert!(unmapped.is_ok());
        }
    }
}
