//! The contract with real scripts, run by real shells.

mod contract;
mod endings;
mod output;
mod queue;
mod support;
