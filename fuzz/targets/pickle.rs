//! See `seqembed_fuzz::pickle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::pickle(data));
