//! Replays the corpus of every fuzz target (`tests/fuzz/corpus/`), without a fuzzer.

use std::{fs, io, path::Path};

use kms_envelope::fuzzing;

fn replay(target: &str, decode: fn(&[u8])) -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(&corpus)? {
        decode(&fs::read(file?.path())?);
        count += 1;
    }
    assert!(count >= 5, "{} holds {count} inputs", corpus.display());
    Ok(())
}

#[test]
fn every_wrapped_key_of_the_corpus_has_one_encoding_or_none() -> io::Result<()> {
    replay("wrapped_key", fuzzing::wrapped_key)
}

#[test]
fn every_header_of_the_corpus_has_one_encoding_or_none() -> io::Result<()> {
    replay("envelope_header", fuzzing::envelope_header)
}

#[test]
fn every_envelope_of_the_corpus_opens_alike_in_memory_and_as_a_stream() -> io::Result<()> {
    replay("envelope_open", fuzzing::envelope_open)
}

#[test]
fn every_context_of_the_corpus_keeps_its_limits() -> io::Result<()> {
    replay("context", fuzzing::context)
}
