//! Moving bytes: what both ends have in common.
//!
//! An end keeps its two indexes here and only publishes them in the page; of the peer's two it
//! keeps what it saw last. The order of things is what makes a ring work: bytes are written after
//! the peer's index said that their place is free, and before ours says that they are there;
//! bytes are read after the peer's index said that they are there, and before ours says that
//! their place is free. So the peer's indexes are loaded with Acquire and ours stored with
//! Release, and the bytes in between are relaxed.

use bytes::BufMut;

use super::page::{AtomicU8, AtomicU32, Ordering, Page};
use super::{RING_SIZE, RingError};

/// The distance that two indexes may have.
const RING: u32 = RING_SIZE as u32;

/// An index in the page, and its name.
#[derive(Clone, Copy)]
struct Index<'a> {
    cell: &'a AtomicU32,
    name: &'static str,
}

impl Index<'_> {
    fn load(self) -> u32 {
        self.cell.load(Ordering::Acquire)
    }

    fn publish(self, index: u32) {
        self.cell.store(index, Ordering::Release);
    }

    /// Whether an index of our own is still as we left it.
    fn check_own(self, own: u32) -> Result<(), RingError> {
        let found = self.cell.load(Ordering::Relaxed);
        if found == own { Ok(()) } else { Err(RingError::OwnIndex { index: self.name, found, own }) }
    }
}

/// One ring of the page.
#[derive(Clone, Copy)]
struct Ring<'a> {
    bytes: &'a [AtomicU8; RING_SIZE],
    prod: Index<'a>,
    cons: Index<'a>,
}

impl Ring<'_> {
    /// The places of `count` bytes from an index on: up to the end of the ring, and from its
    /// beginning.
    fn places(&self, from: u32, count: usize) -> [&[AtomicU8]; 2] {
        let (before, behind) = self.bytes.split_at(from as usize % RING_SIZE);
        let first = count.min(behind.len());
        [&behind[..first], &before[..count - first]]
    }
}

/// Both rings, as one end sees them.
#[derive(Clone, Copy)]
pub(super) struct Rings<'a> {
    out: Ring<'a>,
    input: Ring<'a>,
}

impl Page {
    fn requests(&self) -> Ring<'_> {
        let prod = Index { cell: &self.req_prod, name: "req_prod" };
        let cons = Index { cell: &self.req_cons, name: "req_cons" };
        Ring { bytes: &self.req, prod, cons }
    }

    fn replies(&self) -> Ring<'_> {
        let prod = Index { cell: &self.rsp_prod, name: "rsp_prod" };
        let cons = Index { cell: &self.rsp_cons, name: "rsp_cons" };
        Ring { bytes: &self.rsp, prod, cons }
    }

    pub(super) fn rings_of_client(&self) -> Rings<'_> {
        Rings { out: self.requests(), input: self.replies() }
    }

    pub(super) fn rings_of_server(&self) -> Rings<'_> {
        Rings { out: self.replies(), input: self.requests() }
    }
}

/// Where an end is in its two rings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// How far we have written: the truth, of which the page has a copy.
    out_prod: u32,
    /// How far the peer had read that when we last looked; never more than a ring behind.
    out_cons: u32,
    /// How far we have read: the truth.
    in_cons: u32,
    /// How far the peer had written when we last looked; never more than a ring ahead.
    in_prod: u32,
}

impl Flow {
    /// Goes on from the indexes that are in the page, whoever left them there.
    pub(super) fn found_in(Rings { out, input }: Rings<'_>) -> Result<Self, RingError> {
        let flow = Self {
            out_prod: out.prod.load(),
            out_cons: out.cons.load(),
            in_cons: input.cons.load(),
            in_prod: input.prod.load(),
        };
        let bad = |index: Index<'_>, found, own| RingError::BadIndex { index: index.name, found, own };
        if flow.out_prod.wrapping_sub(flow.out_cons) > RING {
            return Err(bad(out.cons, flow.out_cons, flow.out_prod));
        }
        if flow.in_prod.wrapping_sub(flow.in_cons) > RING {
            return Err(bad(input.prod, flow.in_prod, flow.in_cons));
        }
        Ok(flow)
    }

    /// How many bytes can be written.
    pub(super) fn room(&mut self, rings: Rings<'_>) -> Result<usize, RingError> {
        self.check_own(rings)?;
        let cons = rings.out.cons.load();
        let used = self.out_prod.wrapping_sub(cons);
        // The peer only takes bytes away, so there are never more of them than when we last looked.
        if used > self.out_prod.wrapping_sub(self.out_cons) {
            let index = rings.out.cons.name;
            return Err(RingError::BadIndex { index, found: cons, own: self.out_prod });
        }
        self.out_cons = cons;
        Ok((RING - used) as usize)
    }

    /// How many bytes can be read.
    pub(super) fn available(&mut self, rings: Rings<'_>) -> Result<usize, RingError> {
        self.check_own(rings)?;
        let prod = rings.input.prod.load();
        let available = prod.wrapping_sub(self.in_cons);
        // The peer only adds bytes, so there are never fewer of them than when we last looked.
        if available > RING || available < self.in_prod.wrapping_sub(self.in_cons) {
            let index = rings.input.prod.name;
            return Err(RingError::BadIndex { index, found: prod, own: self.in_cons });
        }
        self.in_prod = prod;
        Ok(available as usize)
    }

    /// Writes as many bytes as there is room for.
    pub(super) fn send(&mut self, rings: Rings<'_>, bytes: &[u8]) -> Result<usize, RingError> {
        let count = self.room(rings)?.min(bytes.len());
        if count == 0 {
            return Ok(0);
        }
        let places = rings.out.places(self.out_prod, count);
        let (first, second) = bytes[..count].split_at(places[0].len());
        for (places, bytes) in places.into_iter().zip([first, second]) {
            for (place, byte) in places.iter().zip(bytes) {
                place.store(*byte, Ordering::Relaxed);
            }
        }
        self.out_prod = self.out_prod.wrapping_add(count as u32);
        rings.out.prod.publish(self.out_prod);
        Ok(count)
    }

    /// Appends what there is, but no more than `max` bytes.
    pub(super) fn receive(
        &mut self,
        rings: Rings<'_>,
        into: &mut impl BufMut,
        max: usize,
    ) -> Result<usize, RingError> {
        let count = self.available(rings)?.min(max).min(into.remaining_mut());
        if count == 0 {
            return Ok(0);
        }
        for places in rings.input.places(self.in_cons, count) {
            // By way of a block: the page is no `&[u8]`, for the peer can write in it.
            let mut block = [0; 64];
            for places in places.chunks(block.len()) {
                let block = &mut block[..places.len()];
                for (byte, place) in block.iter_mut().zip(places) {
                    *byte = place.load(Ordering::Relaxed);
                }
                into.put_slice(block);
            }
        }
        self.in_cons = self.in_cons.wrapping_add(count as u32);
        rings.input.cons.publish(self.in_cons);
        Ok(count)
    }

    /// Whether all that the peer had written when we last looked is read.
    pub(super) fn is_drained(&self) -> bool {
        self.in_cons == self.in_prod
    }

    /// Looks at our own indexes in the page. They are never used; but a peer that has changed them
    /// has lost its way, or has begun anew without us.
    fn check_own(&self, Rings { out, input }: Rings<'_>) -> Result<(), RingError> {
        out.prod.check_own(self.out_prod)?;
        input.cons.check_own(self.in_cons)
    }
}
