//! See `seqembed_fuzz::safetensors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seqembed_fuzz::safetensors(data));
