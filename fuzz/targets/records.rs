//! See `seqembed_fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::records(data));
