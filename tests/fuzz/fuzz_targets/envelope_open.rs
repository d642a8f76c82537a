//! See `kms_envelope::fuzzing::envelope_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kms_envelope::fuzzing::envelope_open(bytes));
