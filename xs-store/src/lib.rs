//! An embedded xenstore.
//!
//! The whole protocol in memory, for tests, for tools that bring their own store, and for hosts
//! without a daemon. [`Store`] is the way in; clients talk to it in the wire protocol, over an
//! in-process pipe or a Unix socket, and cannot tell it from Xen's C daemon but by its speed.
//!
//! Within: a pure core that turns requests into output, and tasks around it that move bytes.
//!
//! - [`tree`](self) holds the nodes, immutable and shared;
//! - transactions, watches, domains and quotas are modules of their own, each with the rules of
//!   the C daemon.

mod admin;
mod connection;
mod domains;
mod nodes;
mod quota;
mod rights;
mod server;
mod store;
mod transaction;
mod tree;
mod watch;

pub use server::Store;
