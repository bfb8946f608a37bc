//! libxl's configuration of a domain: the file by which `xl` makes the domain anew.
//!
//! libxl keeps a JSON file for each domain that it made, with all of its devices in it. `xl` reads it when
//! it reboots, saves or migrates the domain, so a device that is only in the store is lost then. An add
//! that is to last therefore enters its device there, and a removal strikes it out. Where there is no such
//! file, another toolstack made the domain, and none is created.
//!
//! | what | where |
//! | --- | --- |
//! | the text: how libxl prints JSON | [`pretty`] |
//! | the content: entering a device into a configuration, and striking it out | [`enter`], [`strike`] |
//! | the file: where it is, its lock, and how it is replaced | [`Userdata`], [`Locked`] |
//!
//! # Unlike libxl
//!
//! - A device is known by its number. libxl knows a disk by the spelling of its name, so that `xvda` and
//!   `51712` are two entries for one disk.
//! - A removal strikes the entry out. libxl leaves it, and passes over it when it reads the file.

mod config;
mod text;
mod userdata;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub(crate) use config::Listing;
pub use config::{enter, strike};
pub(crate) use config::{enter_usb, set_medium, strike_usb};
pub use text::pretty;
pub(crate) use userdata::Lock;
pub use userdata::{Locked, Userdata};

/// Why a configuration cannot be changed. It is as it was before.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read or replaced.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// Another program did not give its lock back in time.
    #[error("another program has held its lock for {0:?}")]
    Busy(Duration),
    /// The storage that it is on did not answer in time.
    #[error("it does not answer within {0:?}")]
    NoAnswer(Duration),
    /// It is larger than any configuration is.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// It is not a JSON object.
    #[error("it is not a JSON object: {0}")]
    Syntax(String),
    /// It holds a number that could not be kept exactly.
    #[error("it holds {0}, which is not an integer of 64 bits")]
    NotAnInteger(String),
    /// The member that lists the devices is not an array.
    #[error("its member {0:?} is not an array")]
    NotAnArray(&'static str),
}

impl From<io::Error> for ConfigError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}
