//! The shared page between a guest and its xenstore server: both ends.
//!
//! A guest without a socket talks to the store through one page of its memory. It holds two
//! rings of 1024 bytes, requests and replies, and four indexes that say how much is in them
//! ([`Page`]). An event channel beside it says "look again". [`ClientEnd`] is the guest's end and
//! [`ServerEnd`] the server's. Both move bytes and nothing else: what the bytes mean is the
//! business of [`crate::Header`], [`crate::Request`] and [`crate::Reply`], and the event channel
//! that of a driver.
//!
//! ```
//! use xs_proto::Features;
//! use xs_proto::ring::{ClientEnd, Page, ServerEnd};
//!
//! let page = Page::new();
//! let mut server = ServerEnd::new(&page, Features::ERROR);
//! let mut client = ClientEnd::attach(&page)?;
//!
//! assert_eq!(client.send(b"a request")?, 9);
//! assert!(client.take_notify());
//! let mut request = Vec::new();
//! assert_eq!(server.receive(&mut request, 4096)?, 9);
//! assert_eq!(request, b"a request");
//! # Ok::<(), xs_proto::ring::RingError>(())
//! ```
//!
//! # When to notify, and when to sleep
//!
//! An end that publishes something in the page owes its peer a notification, which `take_notify`
//! tells. One for many moves is enough, as long as it is raised before this end sleeps. A driver
//! is a loop:
//!
//! ```text
//! forever
//!     take the event                 (clear what is pending, before looking)
//!     receive and send               (until neither moves a byte)
//!     if take_notify: notify the peer
//!     if has_input or has_room: go on from the top
//!     wait for the event
//! ```
//!
//! - Of `has_input` and `has_room`, ask the one whose answer would be acted on. A server that
//!   reads no requests until its replies are out asks for room alone, and looks for input by
//!   itself later, since no event will come for what it has left in the ring.
//! - Both look at the peer's index after a sequentially consistent fence, and so cannot miss what
//!   a peer published when it took this end for busy. That matters because real peers are lazy:
//!   Linux notifies after writing only if the ring had been empty, and after reading only if it
//!   had been full.
//! - For the same reason fill the ring before waiting for room. Who waits until there is room for
//!   a whole message waits for a notification that a lazy peer does not send; and a message may
//!   be longer than the ring.
//! - An event may come late, twice, merged with another, or for nothing.
//!
//! # What is trusted
//!
//! Nothing in the page. The peer can write anywhere in it at any time, so an end keeps its own
//! indexes in memory of its own, looks at an index of the peer once in an operation, and takes
//! from it no more than how many of 1024 bytes may be moved. An index that is ahead of the ring,
//! or behind where it was, ends the connection ([`RingError`]); so does a change of an index that
//! is ours, which is only ever read to find that out. Bytes are copied out before anybody looks
//! at them.
//!
//! Every field of the page is atomic, so this is safe code. What is unsafe is to say that some
//! address is such a page ([`Page::from_ptr`]); with the feature `map`, `Mapping` says so of a
//! file.
//!
//! Sources: `xen/include/public/io/xs_wire.h` (`struct xenstore_domain_interface`) and
//! `docs/misc/xenstore-ring.txt`; what real peers do was found by experiment.

mod client;
mod error;
mod flow;
#[cfg(all(test, loom))]
mod model;
mod page;
mod server;
// Loom's atomics are not memory that could be shared with anybody.
#[cfg(not(all(test, loom)))]
#[allow(unsafe_code)]
mod shared;

pub use client::ClientEnd;
pub use error::{RingError, RingFault};
pub use page::{PAGE_SIZE, Page, RING_SIZE};
pub use server::ServerEnd;
#[cfg(all(feature = "map", not(all(test, loom))))]
pub use shared::Mapping;
