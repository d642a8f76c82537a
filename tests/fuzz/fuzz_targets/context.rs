//! See `kms_envelope::fuzzing::context`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kms_envelope::fuzzing::context(bytes));
