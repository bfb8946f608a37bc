//! Runs Xen's hotplug scripts to their contract.
//!
//! A hotplug script is what makes a paravirtual device real on the backend's side: `block` sets up a
//! loop device and tells blkback its numbers, `vif-bridge` puts the interface on a bridge. The
//! toolstack runs it when the backend is ready for it and again when the device goes. This crate is
//! only about the run itself, or what takes its place ([`native`]): [`Request`] says what is to be done for which device, [`ScriptRunner`]
//! executes the script for it, [`Report`] says how that ended. It has no connection to xenstore and never decides when to run
//! anything.
//!
//! ```
//! use xen_hotplug::{Action, Kind, Limits, Request, Runner, ScriptRunner};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let locks = tempfile::tempdir().unwrap();
//! let runner = ScriptRunner::new();
//! # let runner = runner.lock_dir(locks.path());
//! // `true` stands in for /etc/xen/scripts/block.
//! let request = Request::new(Kind::Vbd, Action::Add, 1, 51712, "true");
//! let report = runner.run(&request, &Limits::default(), &CancellationToken::new()).await;
//! assert!(report.success(), "{request} {report}");
//! # }
//! ```
//!
//! # What a script finds
//!
//! * its arguments and variables as [`Request::args`] and [`Request::variables`] list them;
//! * an environment from an allow-list, with a `PATH` in which the `sbin` directories are never missing;
//! * standard input from `/dev/null`, standard output and error into one pipe, every other descriptor
//!   closed: an inherited descriptor that holds a `flock` would keep it for as long as a daemon started
//!   by the script lives;
//! * a session and process group of its own, `SIGPIPE` and `SIGCHLD` at their defaults and no signal
//!   blocked, whatever the program that embeds this crate does with them.
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
//! What a script printed is kept as it is ([`Output`]), and shown escaped and short ([`printable`]). A script
//! that cannot be started is looked at, so that the error names what is to be mended ([`SpawnFault`]).
//!
//! Dropping the future of a run kills the group at once. The end of the program that runs it, whatever
//! ends it, `SIGKILL` and a panic that aborts included, ends the group too: a process of this crate stands
//! between the program and its script, the *guard* (`hotplug-guard` in a list of processes). When the
//! program is gone, it sends the group `SIGTERM`, and `SIGKILL` 2 s later. Until the last process of the
//! group is dead it keeps the lock of the device, which keeps other scripts of the same device waiting.
//! No process is left behind as a zombie.
//!
//! Who kills a guard with `SIGKILL` kills the script's own process with it, though not its children.
//!
#![doc = include_str!("demands.md")]

mod contract;
mod lock;
pub mod native;
mod printable;
mod process;
mod report;
mod request;
mod runner;
mod spawn;

pub use lock::Held;
pub use printable::{LINE_SHOWN, printable};
pub use process::{OUTPUT_MAX, Output, pass_on_no_descriptors};
pub use report::{Ending, Report};
pub use request::{Action, Kind, Request};
pub use runner::{Limits, Permit, Runner, ScriptRunner};
pub use spawn::{SpawnError, SpawnFault};
