//! Criterion benchmarks of the layers of xendev, from the bottom up:
//!
//! - `codec`: requests and replies to bytes and back (xs-proto);
//! - `store`: the embedded store, asked in raw messages over an in-process pipe (xs-store);
//! - `client`: the client against that store, so less `store` it is the client's own cost (xs-client).
//!
//! `cargo bench -p benches` runs all, `cargo bench -p benches --bench client -- reads` some. Every
//! runtime has one thread, that of the benchmark: what is measured is work, not wake-ups across CPUs.
