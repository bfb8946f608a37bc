//! An embedded xenstore.
//!
//! The whole protocol in memory, for tests, for tools that bring their own store, and for hosts
//! without a daemon. [`Store`] is the way in; clients talk to it in the wire protocol, over an
//! in-process pipe or a Unix socket. They can tell it from Xen's C daemon by its speed, and by this:
//! a path has at most 3072 bytes (a relative one 2048) on sockets too; `CONTROL` knows neither
//! `memreport` nor `logfile` nor `live-update`, and writes a log only if the process keeps one; who has
//! left very much unread is told that anything it watches may have changed, and loses no event.
//!
//! Within is a pure core that turns requests into output, and a thin driver of tasks that move
//! bytes:
//!
//! | module | holds |
//! | --- | --- |
//! | `tree`, `rights` | the nodes, immutable and shared, and who may do what with them |
//! | `transaction` | what a transaction has seen and changed, and its commit |
//! | `watch`, `change` | the watches, found by path, and what they are told of |
//! | `domains`, `quota` | the domains, and what they may use up |
//! | `hypervisor` | what is asked of one, if there is one |
//! | `nodes`, `admin`, `control` | the requests |
//! | `connection`, `outbox` | a connection, and what waits to be sent to it |
//! | `pressure`, `waiting` | who waits until others have taken their events |
//! | `special` | who is told of domains |
//! | `store` | the core that these are parts of |
//! | `server` | the driver |
//! | `rings` | guests on rings, under a stand-in for the hypervisor |

mod admin;
mod change;
mod conflict;
mod connection;
mod control;
mod domains;
mod hypervisor;
mod nodes;
mod outbox;
mod pressure;
mod quota;
mod rights;
mod rings;
mod server;
mod special;
mod store;
mod transaction;
mod tree;
mod waiting;
mod watch;

pub use rings::TestDomains;
pub use server::Store;
