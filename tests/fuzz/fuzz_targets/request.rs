//! Bytes that a caller sends.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| msg_fuzz::request::run(data));
