//! What holds for any input at all, and `cargo lab fuzz`, which looks for one for which it does not.
//!
//! A target is a function that takes bytes and panics if a promise is broken. libFuzzer feeds it,
//! by way of the entry points in `lab/fuzz`, with inputs that reach ever more of the code; those
//! that are worth keeping are in `lab/fuzz/corpus`, and are replayed by the ordinary tests.
//!
//! | target | what it holds to |
//! | --- | --- |
//! | `frames` | a stream gives the same messages however it is cut, and they make it up again |
//! | `requests`, `replies` | what decodes is encoded to what decodes to the same |
//! | `paths`, `permissions` | plain readings of the two grammars, and of what they mean |
//! | `ring` | bytes arrive in order whatever the pieces; a spoiled page is an error at most |
//! | `store` | a naive model gives the same replies and events |

mod command;
mod frames;
mod model;
mod names;
mod payloads;
mod records;
mod ring;
mod store;

use std::path::{Path, PathBuf};

pub use command::{FuzzArgs, run};
pub use frames::frames;
pub use names::{paths, permissions};
pub use payloads::{replies, requests};
pub use records::change_records;
pub use ring::ring;
pub use store::store;

/// Something to be held to its promises.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its entry point, and of its corpus.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub check: fn(&[u8]),
    /// The longest input worth trying, in bytes.
    max_len: usize,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    // Some messages of the greatest length.
    Target { name: "frames", check: frames, max_len: 12 << 10 },
    // A payload of the greatest length, and a bit.
    Target { name: "requests", check: requests, max_len: 4200 },
    Target { name: "replies", check: replies, max_len: 4200 },
    // Two paths, of which one is too long.
    Target { name: "paths", check: paths, max_len: 3500 },
    Target { name: "permissions", check: permissions, max_len: 256 },
    // A hundred steps.
    Target { name: "ring", check: ring, max_len: 300 },
    // Forty requests.
    Target { name: "store", check: store, max_len: 160 },
];

impl Target {
    /// Where its corpus is.
    pub fn corpus(&self) -> PathBuf {
        folder().join("corpus").join(self.name)
    }
}

/// The folder of the entry points and the corpora, which is a workspace of its own.
fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}
