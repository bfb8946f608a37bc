//! Runs Xen's hotplug scripts to their contract.
//!
//! A hotplug script is what makes a paravirtual device real on the backend's side: `block` sets up a
//! loop device and tells blkback its numbers, `vif-bridge` puts the interface on a bridge. The
//! toolstack runs it when the backend is ready for it and again when the device goes. This crate is
//! only about the run itself: [`ScriptRun`] says what is to be executed, [`ScriptRunner`] executes it,
//! [`Report`] says how that ended. It has no connection to xenstore and never decides when to run
//! anything.
//!
//! ```
//! use hotplug::{Action, Limits, Runner, ScriptRun, ScriptRunner};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let runner = ScriptRunner::new();
//! // `true` stands in for /etc/xen/scripts/block.
//! let run = ScriptRun::vbd("true", Action::Add, 1, 51712);
//! let report = runner.run(&run, &Limits::default(), &CancellationToken::new()).await;
//! assert!(report.success(), "{run} {report}");
//! # }
//! ```
//!
//! # What a script finds
//!
//! * its arguments and variables as [`ScriptRun`] lists them, constant strings only, because the stock
//!   scripts `eval` every argument of the form `a=b`;
//! * an environment from an allow-list, with a `PATH` in which the `sbin` directories are never missing;
//! * standard input from `/dev/null`, standard output and error into one pipe, every other descriptor
//!   closed: an inherited descriptor that holds a `flock` would keep it for as long as a daemon started
//!   by the script lives;
//! * a session and process group of its own, `SIGPIPE` at its default and no signal blocked, whatever
//!   the program that embeds this crate does with them.
//!
//! Working directory, umask, user and resource limits are inherited.
//!
//! # How a run ends
//!
//! When the script's own process ends, the run is over: what the script left running on purpose (a
//! tapdisk, a DHCP server) stays, and holding the pipe open delays nothing. Nobody reads the pipe any
//! more then: a daemon that prints must be given another place for it, as the stock scripts do.
//!
//! At the deadline, and when the caller cancels, the whole group gets `SIGTERM`; what is left of it
//! after a grace period gets `SIGKILL`. So no child of a script that was given up goes on to write to
//! the store. A daemon that has left the group (`setsid`) has said that it wants to outlive the script,
//! and is let live.
//!
//! Dropping the future of a run kills the group at once. No process is left behind as a zombie.

mod child;
mod environment;
mod group;
mod output;
mod report;
mod run;
mod runner;

pub use output::{OUTPUT_MAX, Output};
pub use report::{Ending, Report, SpawnError};
pub use run::{Action, ScriptRun};
pub use runner::{Limits, Runner, ScriptRunner};
