//! See `seqembed_fuzz::rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::rows(data));
