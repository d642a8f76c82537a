//! Streams, whole and cut.

use std::{io::Cursor, sync::atomic::Ordering::Relaxed};

use kms_client::envelope::{Envelopes, Error, Policy};

use crate::{
    context, envelopes,
    memory::{KEY, Memory},
};

async fn sealed(envelopes: &Envelopes<Memory>, plaintext: &[u8]) -> Vec<u8> {
    let reader = Cursor::new(plaintext.to_vec());
    envelopes.seal_stream(&context("acme", "a"), reader, Vec::new()).await.expect("it is sealed")
}

async fn opened(envelopes: &Envelopes<Memory>, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    envelopes.open_stream(&context("acme", "a"), Cursor::new(sealed.to_vec()), Vec::new()).await
}

#[tokio::test]
async fn a_stream_opens_as_what_it_was_and_so_does_the_same_in_memory() {
    let envelopes = envelopes(&Memory::new());
    for len in [0, 1, 65_535, 65_536, 65_537, 262_144, 262_145, 1_000_000] {
        let plaintext: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let stream = sealed(&envelopes, &plaintext).await;
        assert!(opened(&envelopes, &stream).await.expect("it opens") == plaintext, "{len} bytes");
        let whole = envelopes.open(&context("acme", "a"), &stream).await.expect("it opens at once");
        assert!(whole.expose_secret() == plaintext, "{len} bytes");
    }
}

#[tokio::test]
async fn a_stream_that_was_cut_extended_or_reordered_does_not_end_well() {
    let envelopes = envelopes(&Memory::new());
    let stream = sealed(&envelopes, &[7; 200_000]).await;
    let chunk = 65_536 + 16;
    let payload = stream.len() - (200_000 + 4 * 16);
    let cut = [payload, payload + 1, payload + chunk, payload + 3 * chunk, stream.len() - 1];
    for len in cut {
        let error = opened(&envelopes, &stream[..len]).await.expect_err("its end is missing");
        assert!(matches!(error, Error::NotOpened), "at {len}: {error}");
    }
    let mut reordered = stream.clone();
    reordered[payload..payload + 2 * chunk].rotate_left(chunk);
    for changed in [[&stream[..], b"x"].concat(), [&stream[..], &stream[..]].concat(), reordered] {
        let error = opened(&envelopes, &changed).await.expect_err("it was changed");
        assert!(matches!(error, Error::NotOpened), "{error}");
    }
    let error = opened(&envelopes, &stream[..50]).await.expect_err("its header is cut");
    assert!(matches!(error, Error::Malformed(_)), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_an_error_of_the_stream_and_what_was_sealed_counts() {
    let kms = Memory::new();
    let envelopes = Envelopes::new(kms.clone(), KEY, Policy { bytes_max: 50_000, ..Policy::default() });
    // A slice that is full takes no more.
    let disk: &'static mut [u8] = Box::leak(Box::new([0; 1_000]));
    let reader = Cursor::new(vec![7; 100_000]);
    let error = envelopes.seal_stream(&context("acme", "a"), reader, disk).await.expect_err("it is full");
    assert!(matches!(error, Error::Io(_)), "{error}");
    envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    assert_eq!(kms.generated.load(Relaxed), 2, "the first data key has sealed too much");
}
