//! See `seqembed_fuzz::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::journal(data));
