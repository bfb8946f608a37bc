//! The ring page, both ends of it.

#![cfg(not(loom))]

mod end;
mod hostile;
mod processes;
mod rules;
mod transfer;
