//! What a connection runs over, and the ways to get one.
//!
//! A [`Transport`] is any byte stream to a store. A [`Connect`] is a way to make one, which can be
//! taken again when the stream has ended:
//!
//! | way | leads to | whose rights |
//! | --- | --- | --- |
//! | [`UnixSocket`] | a daemon of this machine | those of domain 0 |
//! | [`Xenbus`] | the store of this domain, through Linux's device | those of this domain |
//! | [`Ring`] | the store of a domain, over a page and an event channel | those of that domain |
//! | [`FirstOf`] | the first of several that leads to a store, for good | |
//! | [`Auto`] | the first socket or device that is there | |
//!
//! Where there are no Unix sockets (Windows), a [`Connect`] or a [`Transport`] of one's own is the way, to the device of the
//! Xen drivers there.

#[cfg(unix)]
mod auto;
mod first;
#[cfg(unix)]
mod ring;
#[cfg(unix)]
mod unix;
#[cfg(unix)]
mod xenbus;

use std::future::Future;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(unix)]
pub use crate::places::{default_device, default_socket};
#[cfg(unix)]
pub use auto::Auto;
pub use first::FirstOf;
#[cfg(unix)]
pub use ring::{EventFds, Events, Ring, RingStream};
#[cfg(unix)]
pub use unix::{SocketStream, UnixSocket};
#[cfg(unix)]
pub use xenbus::{Xenbus, XenbusStream};

/// A byte stream to a store. Implemented for every type that can be one: a `UnixStream`, one end
/// of `tokio::io::duplex`, your own.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

/// A way to a store that can be taken again and again.
pub trait Connect: Send + 'static {
    /// What it leads to.
    type Transport: Transport;

    /// What a message calls it: the path of the socket or the device, for example.
    fn at(&self) -> String;

    /// Makes one attempt.
    ///
    /// [`io::ErrorKind::WouldBlock`] says that the store is there and has no time now. Dropping
    /// the future gives the attempt up.
    fn connect(&mut self) -> impl Future<Output = io::Result<Self::Transport>> + Send;

    /// How many requests may be unanswered at one time, as far as the transport matters. Asked
    /// after an attempt that led to one.
    fn window(&self) -> usize {
        usize::MAX
    }

    /// Whether the store's replies and events come in the order in which it made them. Where they
    /// can overtake each other, many watches are not replaced by one of their ancestor.
    fn is_ordered(&self) -> bool {
        true
    }
}
