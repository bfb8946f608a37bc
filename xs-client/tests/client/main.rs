//! The client against a store in this process, and against peers that do what they should not.

mod admin;
mod attempts;
mod broken;
mod calls;
mod door;
mod end;
mod looks;
mod losses;
mod reconnect;
mod shares;
mod stats;
mod stress;
mod support;
mod transactions;
mod trees;
mod watches;
