//! See `kms_envelope::fuzzing::envelope_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kms_envelope::fuzzing::envelope_header(bytes));
