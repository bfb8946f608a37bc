//! Reading what the kernel tells in files that have no size.
//!
//! Those of the standard library ask for the size first and begin with a few bytes: eight system calls for what fits
//! into one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What is mostly there, in bytes.
const MOSTLY: usize = 4 << 10;

/// More than a command line can have, in bytes.
const MOST: u64 = 4 << 20;

/// All of a file.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut all = Vec::with_capacity(MOSTLY);
    // Taken from, it is not asked for its size.
    File::open(path)?.take(MOST).read_to_end(&mut all)?;
    Ok(all)
}

/// All of a file that holds text.
pub(crate) fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}
