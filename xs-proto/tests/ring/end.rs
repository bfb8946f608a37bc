//! What is the same for both ends, so that a test can be written for either.

use std::ops::Deref;

use bytes::BytesMut;
use xs_proto::ring::{ClientEnd, Page, RingError, ServerEnd};

pub(crate) trait End {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError>;
    fn receive(&mut self, into: &mut BytesMut, max: usize) -> Result<usize, RingError>;
    fn has_input(&mut self) -> Result<bool, RingError>;
    fn has_room(&mut self) -> Result<bool, RingError>;
    fn take_notify(&mut self) -> bool;
}

macro_rules! end {
    ($end:ident) => {
        impl<P: Deref<Target = Page>> End for $end<P> {
            fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
                self.send(bytes)
            }
            fn receive(&mut self, into: &mut BytesMut, max: usize) -> Result<usize, RingError> {
                self.receive(into, max)
            }
            fn has_input(&mut self) -> Result<bool, RingError> {
                self.has_input()
            }
            fn has_room(&mut self) -> Result<bool, RingError> {
                self.has_room()
            }
            fn take_notify(&mut self) -> bool {
                self.take_notify()
            }
        }
    };
}

end!(ClientEnd);
end!(ServerEnd);
