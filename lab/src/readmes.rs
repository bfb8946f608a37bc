//! What the READMEs of the crates show is compiled and run, here since each needs the others.

#[doc = include_str!("../../xs-proto/README.md")]
struct Proto;

#[doc = include_str!("../../xs-client/README.md")]
struct XsClient;

#[doc = include_str!("../../xs-store/README.md")]
struct XsStore;

#[doc = include_str!("../../devstate/README.md")]
struct Devstate;

#[doc = include_str!("../../hotplug/README.md")]
struct Hotplug;

#[doc = include_str!("../../aodevice/README.md")]
struct Aodevice;
