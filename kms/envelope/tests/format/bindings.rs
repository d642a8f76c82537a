//! What a payload and a wrap are bound to, field by field: each of these tests knows the data key, and still must not get
//! at the plaintext.

use std::collections::HashSet;

use kms_envelope::{
    DataKeyId, EncryptionContext, Envelope, EnvelopeContext, OpenError, Purpose, WrapHeader, WrappedKey, seal,
};

use crate::custody::{Kek, context, customers, data_key, fixed, opened_both_ways, seal_header, sealed};

/// Offsets in the envelope of [`sealed`], and in its one wrapped key, which begins at 90.
const PURPOSE: [usize; 2] = [6, 90 + 6];
const DATA_KEY_ID: [usize; 2] = [8, 90 + 28];
const SALT: [usize; 1] = [24];
const COMMITMENT: [usize; 1] = [56];

fn assert_does_not_open(envelope: &[u8], seed: u8, expected: Purpose, context: &EnvelopeContext, why: &str) {
    let envelope = Envelope::parse(envelope).unwrap();
    let opened = opened_both_ways(&envelope, &data_key(seed), expected, context);
    assert!(matches!(opened, Err(OpenError::NotOpened)), "{why}: {opened:?}");
}

#[test]
fn a_payload_opens_in_no_other_context() {
    let envelope = sealed(&Kek::new(2), Purpose::Native, b"secret", 3);
    let EnvelopeContext { key, local } = customers();
    let others = [
        (context(&[]), local.clone(), "no key context"),
        (key.clone(), context(&[]), "no local context"),
        (context(&[]), context(&[]), "no context"),
        (local.clone(), key.clone(), "the two changed places"),
        (context(&[("tenant", "acme"), ("table", "orders")]), local.clone(), "another table"),
        (context(&[("tenant", "acme")]), local.clone(), "no table"),
        (context(&[("tenant", "acme"), ("table", "customers"), ("x", "")]), local.clone(), "one more"),
        (context(&[("tenant", "Acme"), ("table", "customers")]), local.clone(), "another case"),
        (
            context(&[("tenanta", "cme"), ("table", "customers")]),
            local.clone(),
            "name and value divided elsewhere",
        ),
        (context(&[("tenant", "acme")]), context(&[("table", "customers"), ("row", "17")]), "a pair moved"),
        (key.clone(), context(&[("row", "18")]), "another row"),
        (key.clone(), context(&[("row", "17 ")]), "a space"),
        (key.clone(), context(&[("row", "17"), ("column", "name")]), "one more of ours"),
    ];
    for (key, local, why) in others {
        assert_does_not_open(&envelope, 1, Purpose::Native, &EnvelopeContext { key, local }, why);
    }
}

#[test]
fn a_payload_opens_under_no_other_data_key_and_at_no_other_door() {
    let envelope = sealed(&Kek::new(2), Purpose::Native, b"secret", 3);
    assert_does_not_open(&envelope, 7, Purpose::Native, &customers(), "another data key");
    assert_does_not_open(&envelope, 1, Purpose::Vault, &customers(), "asked for at another door");
    for (expected, why) in [(Purpose::Vault, "moved to a door"), (Purpose::Native, "moved away")] {
        let moved = changed(&envelope, &PURPOSE, 0b11);
        assert_does_not_open(&moved, 1, expected, &customers(), why);
    }
}

#[test]
fn a_payload_is_bound_to_every_field_of_its_header_but_the_recipients() {
    let envelope = sealed(&Kek::new(2), Purpose::Native, b"secret", 3);
    for (offsets, why) in [
        (&DATA_KEY_ID[..], "another data-key id"),
        (&SALT, "another salt"),
        (&COMMITMENT, "another commitment"),
    ] {
        assert_does_not_open(&changed(&envelope, offsets, 1), 1, Purpose::Native, &customers(), why);
    }
}

#[test]
fn a_wrap_is_bound_to_every_field_of_its_header() {
    let kek = Kek::new(2);
    let wrapped = kek.wrap(&data_key(1), DataKeyId([5; 16]), Purpose::Native, &customers().key);
    let header = *wrapped.header();
    let changed = [
        WrapHeader { purpose: Purpose::Vault, ..header },
        WrapHeader { data_key_id: DataKeyId([6; 16]), ..header },
        WrapHeader { context_digest: context(&[]).digest(), ..header },
        WrapHeader { key_uid: [8; 16], ..header },
        WrapHeader { key_version: std::num::NonZeroU32::MAX, ..header },
        WrapHeader { algorithm: kms_envelope::WrapAlgorithm::RsaOaep256, ..header },
    ];
    assert!(kek.unwrap(&wrapped, &customers().key).is_some());
    for changed in changed {
        assert_ne!(changed.aad(), header.aad());
        let moved = WrappedKey::new(changed, wrapped.wrapped().to_vec()).unwrap();
        for context in [customers().key, EncryptionContext::default()] {
            assert!(kek.unwrap_whatever_it_says(&moved, &context).is_none(), "{changed:?}");
        }
    }
}

#[test]
fn a_data_key_that_is_used_often_never_gives_the_same_payload_key_twice() {
    // The same text at the same place: GCM gives the same ciphertext exactly if key and nonce are the same.
    let (kek, key, context) = (Kek::new(2), data_key(1), customers());
    let header = seal_header(&kek, Purpose::Native, &key, &context);
    let (mut payloads, mut drawn) = (HashSet::new(), Vec::new());
    for number in 0..2_000_u32 {
        let envelope = seal(&key, header.clone(), &context, &[0; 32], |salt| {
            drawn.push(salt.len());
            salt[28..].copy_from_slice(&number.to_be_bytes());
            Ok(())
        })
        .unwrap();
        payloads.insert(Envelope::parse(&envelope).unwrap().payload()[..32].to_vec());
    }
    assert_eq!(payloads.len(), 2_000);
    assert_eq!(drawn, vec![32; 2_000], "each envelope draws a salt of its own");
}

#[test]
fn payload_keys_differ_with_purpose_data_key_id_and_context_though_the_salt_be_the_same() {
    let kek = Kek::new(2);
    let mut payloads = HashSet::new();
    let mut count = 0;
    for purpose in [Purpose::Native, Purpose::Vault, Purpose::Kubernetes] {
        for id in [5, 6] {
            for (key, local) in [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab")] {
                let context =
                    EnvelopeContext { key: context(&[("n", key)]), local: context(&[("n", local)]) };
                let mut header = seal_header(&kek, purpose, &data_key(1), &context);
                header.data_key_id = DataKeyId([id; 16]);
                header.recipients = vec![kek.wrap(&data_key(1), header.data_key_id, purpose, &context.key)];
                let envelope = seal(&data_key(1), header, &context, &[0; 32], fixed(3)).unwrap();
                payloads.insert(Envelope::parse(&envelope).unwrap().payload().to_vec());
                count += 1;
            }
        }
    }
    assert_eq!(payloads.len(), count);
}

/// With `bits` flipped at each of `offsets`.
fn changed(envelope: &[u8], offsets: &[usize], bits: u8) -> Vec<u8> {
    let mut envelope = envelope.to_vec();
    offsets.iter().for_each(|offset| envelope[*offset] ^= bits);
    envelope
}
