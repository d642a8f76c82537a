//! Rotation: the wrapped key moves, the payload does not.

use std::sync::atomic::Ordering::Relaxed;

use kms_client::{
    Kind,
    envelope::{Envelopes, Error, Header, Policy, WrappedKey, inspect, key_version},
};
use tonic::Status;

use crate::{
    context, envelopes,
    memory::{KEY, KEY_UID, Memory},
};

fn version(envelope: &[u8]) -> Option<u32> {
    key_version(envelope, &KEY_UID).expect("it is an envelope")
}

/// The same payload for other recipients.
fn for_recipients(sealed: &[u8], recipients: Vec<WrappedKey>) -> Vec<u8> {
    let header = inspect(sealed).expect("it is an envelope");
    let header = header.with_recipients(recipients).expect("they belong together");
    [&header.to_bytes(), payload(sealed)].concat()
}

fn payload(envelope: &[u8]) -> &[u8] {
    &envelope[inspect(envelope).expect("it is an envelope").to_bytes().len()..]
}

#[tokio::test]
async fn an_envelope_on_the_primary_version_is_left_alone() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    assert_eq!(envelopes.rewrap(&sealed).await.expect("it is looked at"), None);
    assert_eq!(kms.rewraps.load(Relaxed), 0);
}

#[tokio::test]
async fn a_rewrap_changes_the_version_and_no_byte_of_the_payload() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    kms.version.store(2, Relaxed);
    let moved = envelopes.rewrap(&sealed).await.expect("it is moved").expect("it was on version 1");
    assert_eq!((version(&sealed), version(&moved)), (Some(1), Some(2)));
    assert_eq!(payload(&sealed), payload(&moved));
    let opened = envelopes.open(&context("acme", "a"), &moved).await.expect("it opens");
    assert_eq!(opened.expose_secret(), b"small");
    assert_eq!(envelopes.rewrap(&moved).await.expect("it is looked at"), None);
    assert_eq!(envelopes.primary_version().await.expect("it is asked"), 2);
}

#[tokio::test]
async fn envelopes_that_share_a_data_key_share_its_move() {
    let kms = Memory::new();
    let envelopes = Envelopes::new(kms.clone(), KEY, Policy { messages_max: 10, ..Policy::default() });
    let mut sealed = Vec::new();
    for number in 0..2_000 {
        let context = context("acme", &number.to_string());
        sealed.push(envelopes.seal(&context, b"small").await.expect("it is sealed"));
    }
    kms.version.store(2, Relaxed);
    let moved = envelopes.rewrap_all(&sealed).await.expect("they are moved");
    assert_eq!((kms.rewraps.load(Relaxed), kms.rewrapped.load(Relaxed)), (2, 200));
    for (number, (sealed, moved)) in sealed.iter().zip(moved).enumerate() {
        let moved = moved.expect("it is moved").expect("it was on version 1");
        assert_eq!(payload(sealed), payload(&moved));
        envelopes.open(&context("acme", &number.to_string()), &moved).await.expect("it opens");
    }
}

#[tokio::test]
async fn what_cannot_be_moved_stops_nothing_else() {
    let (kms, stranger) = (Memory::new(), Memory::new());
    let envelopes = envelopes(&kms);
    let theirs = crate::envelopes(&stranger);
    let lost = theirs.seal(&context("umbrella", "a"), b"small").await.expect("it is sealed");
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    kms.version.store(2, Relaxed);
    let results = envelopes.rewrap_all(&[&lost[..], b"none", &sealed]).await.expect("the batch is done");
    assert!(matches!(results[0], Err(Error::Kms(_))), "{:?}", results[0]);
    assert!(matches!(results[1], Err(Error::Malformed(_))), "{:?}", results[1]);
    assert!(matches!(results[2], Ok(Some(_))), "{:?}", results[2]);
}

#[tokio::test]
async fn of_several_recipients_only_our_own_moves() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    let header = inspect(&sealed).expect("it is an envelope");
    let ours = header.recipients()[0].clone();
    let other = kms.wrap_again(&ours, [9; 16]).expect("the data key is known");
    let shared = for_recipients(&sealed, vec![other.clone(), ours]);
    envelopes.open(&context("acme", "a"), &shared).await.expect("it opens");

    kms.version.store(2, Relaxed);
    let moved = envelopes.rewrap(&shared).await.expect("it is moved").expect("it was on version 1");
    let header: Header = inspect(&moved).expect("it is an envelope");
    assert_eq!(header.recipients()[0], other);
    assert_eq!(header.recipients()[1].header().key_version.get(), 2);
    envelopes.open(&context("acme", "a"), &moved).await.expect("it opens");

    let strange = for_recipients(&sealed, vec![other.clone(), other]);
    assert_eq!(version(&strange), None);
    let error = envelopes.open(&context("acme", "a"), &strange).await.expect_err("it is not for us");
    assert!(matches!(error, Error::NotOpened), "{error}");
}

#[tokio::test]
async fn all_recipients_of_our_key_move_and_the_lowest_version_counts_until_then() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    let first = inspect(&sealed).expect("it is an envelope").recipients()[0].clone();
    let other = kms.wrap_again(&first, [9; 16]).expect("the data key is known");
    kms.version.store(2, Relaxed);
    let second = kms.wrap_again(&first, KEY_UID).expect("the data key is known");
    let shared = for_recipients(&sealed, vec![other.clone(), second, first]);
    assert_eq!(version(&shared), Some(1));

    for primary in [2, 3] {
        kms.version.store(primary, Relaxed);
        let moved = envelopes.rewrap(&shared).await.expect("it is moved").expect("a part was on version 1");
        assert_eq!(version(&moved), Some(primary));
        assert_eq!(inspect(&moved).expect("it is an envelope").recipients()[0], other);
        assert_eq!(envelopes.rewrap(&moved).await.expect("it is looked at"), None);
        envelopes.open(&context("acme", "a"), &moved).await.expect("it opens");
    }
}

#[tokio::test]
async fn an_envelope_of_several_recipients_opens_while_no_version_wraps() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    let ours = inspect(&sealed).expect("it is an envelope").recipients()[0].clone();
    let other = kms.wrap_again(&ours, [9; 16]).expect("the data key is known");
    let shared = for_recipients(&sealed, vec![other, ours]);
    kms.version.store(0, Relaxed);
    envelopes.open(&context("acme", "a"), &shared).await.expect("it opens");
}

#[tokio::test]
async fn a_batch_that_fails_takes_no_other_with_it() {
    let kms = Memory::new();
    let envelopes = Envelopes::new(kms.clone(), KEY, Policy { messages_max: 1, ..Policy::default() });
    let mut sealed = Vec::new();
    for number in 0..200 {
        let context = context("acme", &number.to_string());
        sealed.push(envelopes.seal(&context, b"small").await.expect("it is sealed"));
    }
    kms.version.store(2, Relaxed);
    // Which version wraps is answered; the first batch is not.
    *kms.next_answers.lock().expect("unpoisoned") = [Ok(()), Err(Status::unavailable("away"))].into();
    let moved = envelopes.rewrap_all(&sealed).await.expect("it is known which version wraps");
    let kind = |error: &Error| error.as_kms().map(kms_client::Error::kind);
    let away = moved.iter().filter_map(|moved| moved.as_ref().err());
    assert_eq!(away.map(kind).collect::<Vec<_>>(), [Some(Kind::Unavailable); 128]);
    assert_eq!(moved.iter().filter(|moved| matches!(moved, Ok(Some(_)))).count(), 72);
}

#[tokio::test]
async fn a_data_key_that_comes_back_under_another_key_is_not_taken() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    kms.version.store(2, Relaxed);
    *kms.moves_to.lock().expect("unpoisoned") = [9; 16];
    let error = envelopes.rewrap(&sealed).await.expect_err("it is another key");
    assert_eq!(error.as_kms().expect("it is the service's").kind(), Kind::Internal, "{error}");
}
