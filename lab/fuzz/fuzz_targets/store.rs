#![no_main]

use lab::fuzz::change_records;

libfuzzer_sys::fuzz_target!(|data: &[u8]| lab::fuzz::store(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    change_records::<4>(data, size, max_size, seed)
});
