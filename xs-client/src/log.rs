//! What is told of by the way, if the feature `tracing` is chosen.

#[cfg(feature = "tracing")]
#[cfg_attr(not(unix), allow(unused_imports))]
pub(crate) use tracing::{debug, trace};

#[cfg(not(feature = "tracing"))]
macro_rules! nothing {
    ($($told:tt)*) => {};
}
#[cfg(not(feature = "tracing"))]
pub(crate) use {nothing as debug, nothing as trace};
