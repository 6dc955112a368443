//! Bytes that lie in the topic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| msg_fuzz::record::run(data));
