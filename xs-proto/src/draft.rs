//! Writing a message: straight into the buffer that is sent, checked on the way, and taken back
//! out if it turns out not to be one.
//!
//! All of it is `inline(always)`: a draft that is handed on by value is moved right after it was
//! written, which waits for the stores, as in the grammars.

use core::fmt::{Display, Write as _};

use bytes::{BufMut, BytesMut};

use crate::{EncodeError, HEADER_LEN, Header, Op, PAYLOAD_MAX, Path, TxId};

/// A message at the end of a buffer whose payload is not complete yet.
pub(crate) struct Draft<'a> {
    out: &'a mut BytesMut,
    /// Where it begins.
    start: usize,
    op: Op,
    /// Bytes of payload so far, those included that were too many to be written.
    len: usize,
    embedded_nul: bool,
}

impl<'a> Draft<'a> {
    #[inline(always)]
    pub(crate) fn new(op: Op, req_id: u32, tx_id: TxId, out: &'a mut BytesMut) -> Self {
        let start = out.len();
        Header { op, req_id, tx_id, len: 0 }.encode(out);
        Self { out, start, op, len: 0, embedded_nul: false }
    }

    #[inline(always)]
    fn push(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len());
        if self.len <= PAYLOAD_MAX {
            self.out.put_slice(bytes);
        }
    }

    /// Appends bytes as they are.
    #[inline(always)]
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.push(bytes);
        self
    }

    /// Appends a string and its NUL; it may hold none itself.
    #[inline(always)]
    pub(crate) fn string(mut self, text: &[u8]) -> Self {
        self.embedded_nul |= memchr::memchr(0, text).is_some();
        self.bytes(text).bytes(b"\0")
    }

    /// Appends a path and its NUL.
    #[inline(always)]
    pub(crate) fn path(self, path: &Path) -> Self {
        self.bytes(path.as_bytes()).bytes(b"\0")
    }

    /// Appends the text of a value and a NUL.
    pub(crate) fn text(mut self, value: impl Display) -> Self {
        // Writing to a draft cannot fail.
        let _ = write!(self, "{value}");
        self.bytes(b"\0")
    }

    /// Completes the message, or leaves the buffer as it was before.
    #[inline(always)]
    pub(crate) fn finish(self) -> Result<(), EncodeError> {
        let Self { out, start, op, len, embedded_nul } = self;
        let refusal = if embedded_nul {
            EncodeError::EmbeddedNul { op }
        } else if len > PAYLOAD_MAX {
            EncodeError::TooLong { op, len, max: PAYLOAD_MAX }
        } else {
            out[start + HEADER_LEN - 4..start + HEADER_LEN].copy_from_slice(&(len as u32).to_le_bytes());
            return Ok(());
        };
        out.truncate(start);
        Err(refusal)
    }
}

impl core::fmt::Write for Draft<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}
