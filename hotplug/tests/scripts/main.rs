//! The contract with real scripts, run by real shells.

mod contract;
mod endings;
mod guard;
mod lock;
mod output;
mod program;
mod queue;
mod start;
mod support;
