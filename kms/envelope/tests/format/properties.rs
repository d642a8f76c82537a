//! What holds of all inputs: garbage never panics, what was sealed opens, and whatever is read has one encoding.

use std::io::Write as _;

use kms_envelope::{
    EncryptionContext, Envelope, EnvelopeContext, Header, Purpose, Sealer, WrappedKey, open, seal,
};
use proptest::{collection, prelude::*};

use crate::custody::{Kek, customers, data_key, fixed, opened_both_ways, seal_header, sealed};

fn any_context() -> impl Strategy<Value = EncryptionContext> {
    collection::btree_map("\\PC{1,20}", "\\PC{0,40}", 0..6)
        .prop_map(|pairs| EncryptionContext::new(pairs).unwrap())
}

fn any_purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![Just(Purpose::Native), Just(Purpose::Vault), Just(Purpose::Kubernetes)]
}

fn read_whatever(bytes: &[u8]) {
    if let Ok(wrapped) = WrappedKey::parse(bytes) {
        assert_eq!(wrapped.to_bytes(), bytes);
    }
    if let Ok(envelope) = Envelope::parse(bytes) {
        let again = [&envelope.header().to_bytes()[..], envelope.payload()].concat();
        assert!(again == bytes, "a header has two encodings");
        let _ = opened_both_ways(&envelope, &data_key(1), Purpose::Native, &customers());
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in collection::vec(any::<u8>(), 0..600)) {
        read_whatever(&bytes);
    }

    #[test]
    fn what_begins_well_and_ends_in_garbage_never_panics(
        kept in 0_usize..260,
        bytes in collection::vec(any::<u8>(), 0..600),
    ) {
        let envelope = sealed(&Kek::new(2), Purpose::Native, b"a small secret", 3);
        let kept = kept.min(envelope.len());
        read_whatever(&[&envelope[..kept], &bytes].concat());
        read_whatever(&[&envelope[90..90 + kept.min(138)], &bytes].concat());
    }

    #[test]
    fn what_was_changed_anywhere_does_not_open(
        changes in collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let kek = Kek::new(2);
        let envelope = sealed(&kek, Purpose::Native, b"a small secret", 3);
        let mut changed = envelope.clone();
        for (at, bits) in changes {
            changed[at.index(envelope.len())] ^= bits;
        }
        prop_assume!(changed != envelope);
        prop_assert!(kek.open(&changed, Purpose::Native, &customers()).is_err());
    }

    #[test]
    fn what_was_sealed_opens_and_a_stream_is_the_same(
        plaintext in collection::vec(any::<u8>(), 0..5_000),
        repeated in 1_usize..40,
        (key, local) in (any_context(), any_context()),
        purpose in any_purpose(),
        (seed, salt) in (any::<u8>(), any::<u8>()),
        piece in 1_usize..100_000,
    ) {
        let plaintext = plaintext.repeat(repeated);
        let (kek, data_key, context) = (Kek::new(2), data_key(seed), EnvelopeContext { key, local });
        let header = seal_header(&kek, purpose, &data_key, &context);
        let envelope = seal(&data_key, header.clone(), &context, &plaintext, fixed(salt)).unwrap();
        prop_assert!(kek.open(&envelope, purpose, &context).unwrap() == plaintext);
        let opened = open(&data_key, &envelope, purpose, &context).unwrap();
        prop_assert!(opened.expose_secret() == plaintext);

        let mut sealer = Sealer::new(Vec::new(), &data_key, header, &context, fixed(salt)).unwrap();
        for piece in plaintext.chunks(piece) {
            sealer.write_all(piece).unwrap();
        }
        prop_assert!(sealer.finish().unwrap() == envelope);
        prop_assert_eq!(Header::read(&envelope[..]).unwrap().purpose(), purpose);
    }

    #[test]
    fn another_context_opens_nothing(contexts in collection::vec((any_context(), any_context()), 2)) {
        let [one, other] = [0, 1].map(|at| {
            let (key, local) = contexts[at].clone();
            EnvelopeContext { key, local }
        });
        prop_assume!(one != other);
        let header = seal_header(&Kek::new(2), Purpose::Native, &data_key(1), &one);
        let envelope = seal(&data_key(1), header, &one, b"secret", fixed(3)).unwrap();
        prop_assert!(open(&data_key(1), &envelope, Purpose::Native, &one).is_ok());
        prop_assert!(open(&data_key(1), &envelope, Purpose::Native, &other).is_err());
    }
}
