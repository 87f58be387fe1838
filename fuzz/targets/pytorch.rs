//! See `seqembed_fuzz::pytorch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::pytorch(data));
