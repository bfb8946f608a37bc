//! Changing inputs that are records of a fixed length.

use fastrand::Rng;

/// Changes an input of whole records: puts some in, takes some out, moves some, changes a byte.
/// Bytes put in or taken out elsewhere would give every later record another meaning.
///
/// `data` has room beyond the `size` bytes that count; returns how many count then.
pub fn change_records<const N: usize>(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = Rng::with_seed(seed.into());
    let mut records: Vec<[u8; N]> =
        data[..size].chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).collect();
    for _ in 0..rng.u8(1..5) {
        let at = rng.usize(0..=records.len());
        match rng.u8(0..6) {
            0 => records.insert(at, std::array::from_fn(|_| rng.u8(..))),
            1 if at < records.len() => drop(records.remove(at)),
            2 if at < records.len() => {
                let some = records[at..records.len().min(at + rng.usize(1..8))].to_vec();
                let to = rng.usize(0..=records.len());
                records.splice(to..to, some);
            }
            3 if at < records.len() => {
                let other = rng.usize(0..records.len());
                records.swap(at, other);
            }
            _ if at < records.len() => records[at][rng.usize(0..N)] = rng.u8(..),
            _ => {}
        }
    }
    records.truncate(max_size.min(data.len()) / N);
    let bytes = records.as_flattened();
    data[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}
