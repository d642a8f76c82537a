//! Small envelopes through the service, and data keys for larger ones.

use kms_core::verbs::{Decrypt, Encrypt, GenerateDataKey, PAYLOAD_LEN_MAX, ReEncrypt};
use kms_envelope::EnvelopeContext;

use super::*;

async fn encrypt(kms: &FakeKms, plaintext: &[u8], context: &EnvelopeContext) -> Result<Vec<u8>, Error> {
    let plaintext = SecretBytes::new(plaintext.to_vec());
    let request = Encrypt { id: id("k"), plaintext, context: context.clone() };
    kms.encrypt(&as_role(Role::User), request, soon()).await.map(|encrypted| encrypted.envelope)
}

async fn decrypt(kms: &FakeKms, envelope: &[u8], context: &EnvelopeContext) -> Result<Vec<u8>, Error> {
    let request = Decrypt { id: id("k"), envelope: envelope.to_vec(), context: context.clone() };
    let opened = kms.decrypt(&as_role(Role::User), request, soon()).await;
    opened.map(|opened| opened.plaintext.expose_secret().to_vec())
}

fn both() -> EnvelopeContext {
    EnvelopeContext { key: context(&[("tenant", "acme")]), local: context(&[("row", "7")]) }
}

#[test]
fn payloads_of_every_length_that_is_taken_come_back() {
    block_on(async {
        let (_, kms) = a_world().await;
        for len in [0, 1, 1000, PAYLOAD_LEN_MAX] {
            let envelope = encrypt(&kms, &vec![7; len], &both()).await.expect("encrypted");
            assert_eq!(decrypt(&kms, &envelope, &both()).await, Ok(vec![7; len]), "{len}");
        }
        let refused = encrypt(&kms, &vec![7; PAYLOAD_LEN_MAX + 1], &both()).await.expect_err("too long");
        assert_eq!(refused.field(), Some("plaintext"));
        let refused = decrypt(&kms, &vec![0; 200_000], &both()).await.expect_err("too long");
        assert_eq!(refused.field(), Some("ciphertext"));
        assert_eq!(
            decrypt(&kms, b"nothing of ours", &both()).await.expect_err("odd").field(),
            Some("ciphertext")
        );
    });
}

#[test]
fn either_context_must_be_the_same() {
    block_on(async {
        let (_, kms) = a_world().await;
        let envelope = encrypt(&kms, b"payload", &both()).await.expect("encrypted");
        let none = context(&[]);
        for other in [
            EnvelopeContext { key: none.clone(), ..both() },
            EnvelopeContext { local: none.clone(), ..both() },
            EnvelopeContext { key: both().local, local: both().key },
            EnvelopeContext { key: none.clone(), local: none },
        ] {
            assert_eq!(reason(decrypt(&kms, &envelope, &other).await), Some("NOT_OPENED"), "{other:?}");
        }
    });
}

#[test]
fn an_envelope_is_moved_to_a_new_version_and_its_payload_is_not_touched() {
    block_on(async {
        let (world, kms) = a_world().await;
        let old = encrypt(&kms, &[9; 5000], &both()).await.expect("encrypted");
        rotate(&world, &kms).await;
        let request = ReEncrypt { id: id("k"), envelope: old.clone() };
        let moved = kms.re_encrypt(&as_role(Role::User), request, soon()).await.expect("moved");
        assert_eq!((moved.from, moved.version), (1, 2));
        let new = moved.moved;
        assert_eq!(old.len(), new.len());
        assert_eq!(old[..88], new[..88], "the header up to the recipients");
        assert_eq!(old[old.len() - 5016..], new[new.len() - 5016..], "the payload and its tag");
        assert_eq!(decrypt(&kms, &new, &both()).await, Ok(vec![9; 5000]));
        assert_eq!(decrypt(&kms, &old, &both()).await, Ok(vec![9; 5000]), "a backup opens as before");
    });
}

#[test]
fn not_one_bit_of_an_envelope_may_differ() {
    block_on(async {
        let (_, kms) = a_world().await;
        let whole = encrypt(&kms, b"payload", &both()).await.expect("encrypted");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decrypt(&kms, &flipped, &both()).await.is_err(), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert!(decrypt(&kms, &whole[..cut], &both()).await.is_err(), "cut at {cut}");
        }
        assert!(decrypt(&kms, &[&whole[..], &whole].concat(), &both()).await.is_err(), "twice");
    });
}

#[test]
fn a_data_key_is_what_its_wrap_opens_to_and_may_be_had_without_being_seen() {
    block_on(async {
        let (_, kms) = a_world().await;
        let tenant = context(&[("tenant", "acme")]);
        let generate = async |len, with_plaintext| {
            let request = GenerateDataKey { id: id("k"), len, context: tenant.clone(), with_plaintext };
            kms.generate_data_key(&as_role(Role::User), request, soon()).await
        };
        for len in [16, 32, 64] {
            let made = generate(len, true).await.expect("made");
            let opened = unwrap(&kms, "k", &made.wrapped.wrapped, &tenant).await.expect("opened");
            let plaintext = made.plaintext.expect("asked for");
            assert_eq!(plaintext.expose_secret(), opened.plaintext.expose_secret());
            assert_eq!(plaintext.len(), len);
            assert_ne!(plaintext.expose_secret(), vec![0; len]);
        }
        let made = generate(32, false).await.expect("made");
        assert!(made.plaintext.is_none());
        unwrap(&kms, "k", &made.wrapped.wrapped, &tenant).await.expect("opened");
        for len in [0, 15, 65] {
            assert_eq!(generate(len, true).await.expect_err("no such length").field(), Some("length"));
        }
    });
}
