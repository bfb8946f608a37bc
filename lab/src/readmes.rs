//! What the READMEs of the crates show is compiled and run, here since each needs the others.

#[doc = include_str!("../../xs-proto/README.md")]
struct Proto;

#[doc = include_str!("../../xs-client/README.md")]
struct XsClient;

#[doc = include_str!("../../xs-store/README.md")]
struct XsStore;
