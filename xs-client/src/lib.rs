//! An asynchronous xenstore client.
//!
//! One connection serves any number of callers: a [`Client`] is a cheap handle, requests are
//! pipelined and matched to their replies by id, all watches of a path share one watch on the
//! server, and a transaction is a closure that is tried again when it conflicts.
//!
//! ```no_run
//! # async fn example() -> Result<(), xs_client::Error> {
//! use xs_client::{Client, Path};
//!
//! let client = Client::connect().await?;
//! let name = client.read(&Path::new("/local/domain/0/name")?).await?;
//! println!("{}", String::from_utf8_lossy(&name));
//! # Ok(())
//! # }
//! ```
//!
//! # What a watch promises
//!
//! That something changed at or below its path since it was last asked. Not what changed, not
//! how often, not in which order: so read again and decide by what the store says now. It may also
//! fire for nothing, for example when its parent was written. A watch fires once right after it was
//! registered, so "watch first, then read" misses nothing. Changes are collected per watcher as a
//! set of paths; one that does not look for a long time costs memory for a bounded set and holds up
//! nobody; beyond the bound it is told so ([`Changes::overflowed`]).
//!
//! How many watches the server has for this is the client's business: one per path, however many
//! watchers, and one for all of them where hundreds are below a common ancestor.
//!
//! # When the connection is lost
//!
//! It is made again, for as long as [`Config::reconnect`] says, by the way by which it was made at
//! first. Calls under way fail with [`Error::Disconnected`], but for reads, which are asked again. A
//! batch of which anything was sent fails whole: what was not sent is not sent on the next
//! connection. Transactions are over, and run again unless their commit was sent; new calls wait. Every watch is registered again and fires once, since nobody knows what it has missed. A
//! daemon that was restarted may have lost all nodes: [`Client::lifecycle`] tells.
//!
//! # What happens if a future is dropped
//!
//! A dropped call is not undone: **the store may still carry it out**, even if it was not sent yet
//! when it was dropped. Its reply is thrown away. Of a dropped batch, what was not sent yet is not
//! sent; so a part of it may be carried out. Whoever has to know reads again, or asks in a
//! transaction.
//!
//! What would stay on the server is cleaned up: a dropped [`Watch`] is removed there, and a dropped
//! transaction is aborted, unless its commit was handed over already. None of that disturbs other
//! calls.
//!
//! # How it is built
//!
//! What the protocol demands of a connection (request ids, pending replies, the watch registry)
//! is a plain value without sockets and clocks, in `connection`. Two faces feed it from a transport and carry out what
//! it asks: `asynchronous`, by one task, and [`blocking`], by whichever thread waits.
//!
//! # Features
//!
//! | feature | by default | what it brings |
//! | --- | --- | --- |
//! | `tokio` | yes | [`Client`] and all else that is not in [`blocking`], on Tokio |
//! | `tracing` | yes | events and spans for requests, losses and conflicts |
//!
//! Without both, [`blocking`] links twelve crates besides those of this project.

// The two faces together use all of the core.
#![cfg_attr(not(all(feature = "tokio", unix)), allow(dead_code))]

mod admin;
mod ask;
#[cfg(feature = "tokio")]
mod asynchronous;
#[cfg(unix)]
pub mod blocking;
mod config;
mod connection;
mod error;
mod inbox;
mod log;
mod messages;
#[cfg(unix)]
mod places;
mod queue;
mod retry;
mod slots;
mod spin;
mod stats;
mod tree;
mod typed;
mod watcher;
mod watches;

#[cfg(feature = "tokio")]
pub use asynchronous::transport::{self, Connect, FirstOf, Transport};
#[cfg(all(feature = "tokio", unix))]
pub use asynchronous::transport::{
    Auto, EventFds, Events, Ring, RingStream, SocketStream, UnixSocket, Xenbus, XenbusStream,
};
#[cfg(feature = "tokio")]
pub use asynchronous::{Client, Lifecycle, Lifecycles, Look, Requests, Transaction, Watch, WatchStream};
pub use config::{Config, Reconnect};
pub use error::Error;
#[cfg(feature = "tokio")]
pub use futures_util::Stream;
#[cfg(unix)]
pub use places::{default_device, default_socket};
pub use queue::Changes;
pub use retry::Retry;
pub use stats::Stats;
pub use tree::Tree;
pub use xs_proto::{
    Access, DomId, ErrorCode, Features, Op, PAYLOAD_MAX, Path, PathError, Permission, Permissions, Reply,
    Request, TxId, path,
};
