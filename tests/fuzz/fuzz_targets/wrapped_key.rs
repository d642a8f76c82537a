//! See `kms_envelope::fuzzing::wrapped_key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kms_envelope::fuzzing::wrapped_key(bytes));
