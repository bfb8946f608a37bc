//! The short version of `cargo lab faults`.

use lab::faults::{self, FaultsArgs};

#[test]
fn the_client_keeps_its_promises_whatever_happens() {
    faults::run(&FaultsArgs { schedules: 300, blocking: 60, seed: 1, quiet: true }).unwrap();
}
