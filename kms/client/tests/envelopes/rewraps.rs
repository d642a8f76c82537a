//! Rotation: the wrapped key moves, the payload does not.

use std::sync::atomic::Ordering::Relaxed;

use kms_client::envelope::{Envelopes, Error, Header, Policy, inspect, key_version};

use crate::{
    context, envelopes,
    memory::{KEY, Memory},
};

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
    assert_eq!((key_version(&sealed), key_version(&moved)), (Ok(1), Ok(2)));
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
    let both = header.with_recipients(vec![other.clone(), ours]).expect("they belong together");
    let shared = [both.to_bytes(), payload(&sealed).to_vec()].concat();
    envelopes.open(&context("acme", "a"), &shared).await.expect("it opens");

    kms.version.store(2, Relaxed);
    let moved = envelopes.rewrap(&shared).await.expect("it is moved").expect("it was on version 1");
    let header: Header = inspect(&moved).expect("it is an envelope");
    assert_eq!(header.recipients()[0], other);
    assert_eq!(header.recipients()[1].header().key_version.get(), 2);
    envelopes.open(&context("acme", "a"), &moved).await.expect("it opens");

    let others = header.with_recipients(vec![other.clone(), other]).expect("they belong together");
    let strange = [others.to_bytes(), payload(&sealed).to_vec()].concat();
    let error = envelopes.open(&context("acme", "a"), &strange).await.expect_err("it is not for us");
    assert!(matches!(error, Error::NotOpened), "{error}");
}
