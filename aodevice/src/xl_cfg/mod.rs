//! `xl`'s configuration files: their [`Settings`], and the devices that a domain's file lists ([`devices()`]).
//!
//! ```
//! use xen_aodevice::xl_cfg::{Settings, devices};
//!
//! let settings = Settings::parse("name = 'vm'\ndisk = ['/srv/d.img,raw,xvda,w']\nvif = ['']\n")?;
//! let devices = devices(&settings, &Default::default()).map_err(|refusals| format!("{refusals:?}"))?;
//! assert_eq!(devices.entries.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod devices;
mod syntax;

pub use devices::{Devices, Entry, Place, Refusal, devices};
pub use syntax::{Item, Settings, SyntaxError, Value};
