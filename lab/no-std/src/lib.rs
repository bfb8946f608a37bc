//! Proof that `xs-proto` needs no standard library: with one in the program, its panic handler
//! would be a second one, and this would not compile.

#![no_std]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use core::ptr::null_mut;

use bytes::{Bytes, BytesMut};
use xs_proto::ring::{ClientEnd, Page};
use xs_proto::{Op, Path, Reply, Request, TxId};

struct NoMemory;

// SAFETY: it never gives any memory out.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}

/// What a guest agent does: puts a request into its ring, and types the reply.
pub fn ask(page: &Page, path: &[u8], reply: Bytes) -> Option<Reply> {
    let mut out = BytesMut::new();
    Request::Read(Path::new(path).ok()?).encode(1, TxId::NONE, &mut out).ok()?;
    ClientEnd::attach(page).ok()?.send(&out).ok()?;
    Reply::decode(Op::READ, Op::READ, reply).ok()
}
