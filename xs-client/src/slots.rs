//! The requests under way, by number.
//!
//! Numbers go up by one and come back soon, so the lowest bits of a number are its place: to find
//! it there costs less than a hash, and a place whose number is another tells a late reply from the
//! one that is waited for.

/// Values under numbers that they are given. A number does not come again before 2^32 others, and
/// never while it is taken. 0 is left out: it stands for watch events.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    /// As many as a power of two, and at least twice as many as are taken.
    places: Vec<Option<(u32, T)>>,
    taken: usize,
    last: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Vec::new(), taken: 0, last: 0 }
    }
}

impl<T> Slots<T> {
    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    fn place(&mut self, number: u32) -> Option<&mut Option<(u32, T)>> {
        let mask = self.places.len().wrapping_sub(1);
        self.places.get_mut(number as usize & mask)
    }

    /// The number that the next value gets.
    pub(crate) fn next(&mut self) -> u32 {
        if self.taken * 2 >= self.places.len() {
            self.grow();
        }
        let mut number = self.last.wrapping_add(1);
        while number == 0 || self.place(number).is_none_or(|place| place.is_some()) {
            number = number.wrapping_add(1);
        }
        number
    }

    /// What has different places among few has different ones among more.
    fn grow(&mut self) {
        let size = (self.places.len() * 2).max(8);
        let places = std::mem::replace(&mut self.places, (0..size).map(|_| None).collect());
        for (number, value) in places.into_iter().flatten() {
            if let Some(place) = self.place(number) {
                *place = Some((number, value));
            }
        }
    }

    /// Puts a value under the number that was [`Self::next`].
    // A value that was just made is not moved then, which would wait for its stores.
    #[inline(always)]
    pub(crate) fn insert(&mut self, number: u32, value: T) {
        if let Some(place) = self.place(number) {
            *place = Some((number, value));
            self.taken += 1;
            self.last = number;
        }
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.place(number)? {
            Some((taken, value)) if *taken == number => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let (_, value) = self.place(number)?.take_if(|(taken, _)| *taken == number)?;
        self.taken -= 1;
        Some(value)
    }

    /// Takes all values, in no order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.taken = 0;
        std::mem::take(&mut self.places).into_iter().flatten().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(slots: &mut Slots<u32>) -> u32 {
        let number = slots.next();
        slots.insert(number, number);
        number
    }

    #[test]
    fn a_number_is_its_own_for_as_long_as_it_is_taken() {
        let mut slots = Slots::default();
        let slow = add(&mut slots);
        for _ in 0..100 {
            let number = add(&mut slots);
            assert_ne!(number, slow);
            assert_eq!(slots.remove(number), Some(number));
            assert_eq!(slots.remove(number), None);
        }
        assert_eq!((slots.len(), slots.places.len()), (1, 8));
        assert_eq!(slots.remove(slow), Some(slow));
        assert!(slots.is_empty());
    }

    #[test]
    fn nothing_is_lost_when_there_are_more() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..1000).map(|_| add(&mut slots)).collect();
        for number in &numbers {
            assert_eq!(slots.get_mut(*number), Some(&mut number.clone()));
        }
        assert_eq!(slots.drain().count(), 1000);
        assert!(slots.is_empty() && !numbers.contains(&slots.next()));
    }

    #[test]
    fn numbers_begin_again_behind_the_last_and_leave_out_0() {
        let mut slots = Slots { last: u32::MAX - 1, ..Slots::default() };
        assert_eq!([add(&mut slots), add(&mut slots)], [u32::MAX, 1]);
        assert_eq!(slots.remove(0), None);
    }
}
