//! The client without a runtime, in real threads: against a store behind a Unix socket, and against
//! peers that do what they should not.
//!
//! Nothing here depends on time but that deadlines pass: who hangs is found out by whoever runs the
//! tests.

mod broken;
mod calls;
mod support;
mod threads;
mod transactions;
mod watches;
