//! The short version of `cargo lab differential`.

use lab::differential::{self, DifferentialArgs};

#[test]
fn the_store_answers_like_the_daemon() {
    let args = DifferentialArgs { sequences: 300, seed: 1, requests: None, quiet: true };
    differential::run(&args).unwrap();
}
