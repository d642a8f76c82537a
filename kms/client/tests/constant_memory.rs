//! A stream takes the memory of a few chunks, however long it is. Alone in its process, because the kernel counts the
//! most that the whole process has had.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

#[path = "envelopes/memory.rs"]
mod memory;

use std::{
    fs,
    io::{Read, Write, pipe, repeat, sink},
};

use kms_client::envelope::{EnvelopeContext, Envelopes, Policy};
use memory::{KEY, Memory};

const STREAM_LEN: u64 = 1 << 30;
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// The most memory that this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it is there");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Counts, and keeps nothing.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        sink().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stream_of_any_length_is_sealed_and_opened_in_constant_memory() {
    let envelopes = Envelopes::new(Memory::new(), KEY, Policy::default());
    let context = EnvelopeContext::default();
    // Whatever is allocated once, by the runtime and its threads too.
    envelopes.seal_stream(&context, repeat(7).take(1 << 20), sink()).await.expect("it is sealed");
    let before = peak_kib();
    let (reader, writer) = pipe().expect("a pipe");
    let (sealed, opened) = tokio::join!(
        // The pipe ends when its writer is dropped.
        async { envelopes.seal_stream(&context, repeat(7).take(STREAM_LEN), writer).await.map(drop) },
        envelopes.open_stream(&context, reader, Count(0)),
    );
    sealed.expect("it is sealed");
    assert_eq!(opened.expect("it opens").0, STREAM_LEN);
    let growth = peak_kib() - before;
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB more");
}
