//! The xenstore wire protocol.
//!
//! Everything a client or a server puts on the wire, as values: the 16-byte [`Header`], every
//! operation as a typed [`Request`] and [`Reply`], [`WatchEvent`]s, and the names in them
//! ([`Path`], [`DomId`], [`Permissions`], [`Token`], [`ErrorCode`]). The crate does no I/O and
//! reads no clock; [`MessageCodec`] plugs it into a byte stream.
//!
//! ```
//! use bytes::BytesMut;
//! use xs_proto::{Path, Request, TxId};
//!
//! let mut out = BytesMut::new();
//! let read = Request::Read(Path::new("/local/domain/0/name")?);
//! read.encode(7, TxId::NONE, &mut out)?;
//! assert_eq!(out.len(), 16 + "/local/domain/0/name\0".len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Two rules hold throughout. What goes out is checked, and a bad call leaves the buffer as it was:
//! it fails alone and never poisons a connection. What comes in is never trusted: a length field
//! allocates nothing, unknown operations, error names and feature bits are kept as data, and
//! malformed input is an error, not a panic.
//!
//! Decoding copies nothing: what comes out are slices of the buffer that the message came in,
//! and keep it alive. Who keeps a [`Path`] or a [`Token`] for long takes it out with
//! `detached()`.
//!
//! The crate is `no_std` and needs `alloc`; the feature `codec` (on by default), for [`MessageCodec`] under
//! `tokio_util::codec`, needs the standard library, which `std` alone brings to the crates that this one uses.
//!
//! Source: Xen's `docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h`.

#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "std", feature = "map"))]
extern crate std;

#[forbid(unsafe_code)]
mod codec;
#[forbid(unsafe_code)]
mod domid;
#[forbid(unsafe_code)]
mod draft;
#[forbid(unsafe_code)]
mod error;
#[forbid(unsafe_code)]
mod features;
#[forbid(unsafe_code)]
mod grammar;
#[forbid(unsafe_code)]
mod message;
#[forbid(unsafe_code)]
mod op;
#[forbid(unsafe_code)]
mod path;
#[forbid(unsafe_code)]
mod perms;
#[forbid(unsafe_code)]
mod reply;
#[forbid(unsafe_code)]
mod request;
// Alone it shares memory with somebody, and in one place: `ring/shared.rs`.
pub mod ring;

pub use codec::MessageCodec;
#[cfg(feature = "codec")]
pub use codec::StreamError;
pub use domid::DomId;
pub use error::{DecodeError, EncodeError, ErrorCode};
pub use features::Features;
pub use message::{HEADER_LEN, Header, Message, PAYLOAD_MAX, TxId, WatchEvent};
pub use op::Op;
pub use path::{ABSOLUTE_MAX, Path, PathError, RELATIVE_MAX};
pub use perms::{Access, Permission, Permissions};
pub use reply::{Names, Reply};
pub use request::{Request, Token};
