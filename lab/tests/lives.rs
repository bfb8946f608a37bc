//! The short version of `cargo lab lives`.

use lab::lives::{self, LivesArgs};

#[test]
fn toolstack_and_daemon_leave_nothing_whatever_dies() {
    lives::run(&LivesArgs { schedules: 1000, seed: 1, quiet: true }).unwrap();
}
