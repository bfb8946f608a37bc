//! The first face of the client: futures, on Tokio.
//!
//! [`driver`] is the one task that feeds the connection from a transport and carries out what it asks; callers reach
//! it by a [`handle`].

mod calls;
mod client;
mod driver;
mod handle;
mod lifecycle;
mod look;
mod requests;
mod transaction;
pub mod transport;
mod watch;
mod wire;

pub use client::Client;
pub use lifecycle::{Lifecycle, Lifecycles};
pub use look::Look;
pub use requests::Requests;
pub use transaction::Transaction;
pub use watch::{Watch, WatchStream};
