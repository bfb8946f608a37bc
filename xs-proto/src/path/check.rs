//! The check of a path's bytes, at 16 of them a step: each path that is decoded goes through it, and
//! it is the largest part of decoding one.

/// Letters (the bit 0x20 makes them small), digits, `-`, `_`, `@`, and the slash before the digits.
pub(super) const fn is_allowed(byte: u8) -> bool {
    (byte | 0x20).is_ascii_lowercase() | matches!(byte, b'/'..=b'9' | b'-' | b'_' | b'@')
}

/// What is wrong with a byte, for texts of less than a [`STEP`]: 1 if it is not allowed; 2 for a
/// slash, if the one before it was a slash too.
const FLAWS: [u8; 256] = {
    let mut flaws = [0; 256];
    let mut byte = 0;
    while byte < flaws.len() {
        flaws[byte] = if byte == b'/' as usize { 2 } else { !is_allowed(byte as u8) as u8 };
        byte += 1;
    }
    flaws
};

fn is_well_formed_by_bytes(bytes: &[u8]) -> bool {
    let (wrong, _) = bytes.iter().fold((0, 0), |(wrong, before), byte| {
        let flaw = FLAWS[usize::from(*byte)];
        (wrong | (flaw & 1) | (flaw & before), flaw)
    });
    wrong == 0
}

/// Bytes that are checked at once.
const STEP: usize = 16;

/// Marks the bytes that may not stand in a path, or not before the `next` one.
fn mark(wrong: &mut [u8; STEP], bytes: &[u8; STEP], next: &[u8; STEP]) {
    // By index and without a way out in the middle, the compiler makes vector code of it.
    for at in 0..STEP {
        let slashes = (bytes[at] == b'/') & (next[at] == b'/');
        wrong[at] |= u8::from(!is_allowed(bytes[at]) | slashes);
    }
}

/// Whether each byte is allowed, and no two slashes follow each other.
pub(super) fn is_well_formed(bytes: &[u8]) -> bool {
    let [all @ .., last] = bytes else { return false };
    let next = &bytes[1..];
    let (Some(end), Some(end_next)) = (all.last_chunk(), next.last_chunk()) else {
        return is_well_formed_by_bytes(bytes);
    };
    let mut wrong = [0; STEP];
    for (step, next) in all.as_chunks().0.iter().zip(next.as_chunks().0) {
        mark(&mut wrong, step, next);
    }
    // Overlaps the step before, so that no bytes are left over.
    mark(&mut wrong, end, end_next);
    wrong == [0; STEP] && is_allowed(*last)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    /// Each byte at each place, in texts that end within a step, with one, and behind two.
    #[test]
    fn steps_and_bytes_agree_with_the_grammar() {
        for length in 1..=40 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    let name = byte.is_ascii_alphanumeric() || b"-_@/".contains(&byte);
                    assert_eq!(is_well_formed(&text), name, "{byte:#04x} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn slashes_stand_alone() {
        for length in 2..=40 {
            for at in 0..length {
                let mut text = vec![b'a'; length];
                text[at] = b'/';
                assert!(is_well_formed(&text), "{at} of {length}");
                text[(at + 1) % length] = b'/';
                assert_eq!(is_well_formed(&text), at + 1 == length && length > 2, "{at} of {length}");
            }
        }
    }
}
