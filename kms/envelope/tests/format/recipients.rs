//! Several recipients, and rewraps: what they may change, and what they cannot.

use kms_envelope::{
    DataKeyId, Envelope, EnvelopeContext, Header, Purpose, RecipientsError, RewrapError, SealError,
    rewrapped, seal,
};

use crate::custody::{Kek, context, customers, data_key, fixed, plaintext, seal_header, sealed};

const ID: DataKeyId = DataKeyId([5; 16]);

#[test]
fn a_rewrap_keeps_every_byte_but_the_recipients() {
    let (old, new, other) = (Kek::new(2), Kek::new(3), Kek::new(4));
    for len in [0, 10, 200_000] {
        let before = sealed(&old, Purpose::Native, &plaintext(len), 3);
        let recipients: Vec<_> =
            [&new, &other].map(|kek| kek.wrap(&data_key(1), ID, Purpose::Native, &customers().key)).into();
        let after = rewrapped(&before, recipients).unwrap();

        let payloads =
            [&before, &after].map(|envelope| Envelope::parse(envelope).unwrap().payload().to_vec());
        assert!(payloads[0] == payloads[1]);
        assert_eq!(before[..7], after[..7]);
        assert_eq!(before[8..88], after[8..88]);
        for kek in [&new, &other] {
            assert!(kek.open(&after, Purpose::Native, &customers()).unwrap() == plaintext(len));
        }
        assert!(old.open(&after, Purpose::Native, &customers()).is_err(), "the old version is out of it");
        assert!(old.open(&before, Purpose::Native, &customers()).is_ok());
        let recipient = old.wrap(&data_key(1), ID, Purpose::Native, &customers().key);
        assert!(rewrapped(&after, vec![recipient]).unwrap() == before, "and back again");
    }
}

#[test]
fn a_rewrap_refuses_recipients_of_another_envelope() {
    let kek = Kek::new(2);
    let envelope = sealed(&kek, Purpose::Native, b"secret", 3);
    let wrap = |id, purpose, context| kek.wrap(&data_key(1), id, purpose, &context);
    let good = wrap(ID, Purpose::Native, customers().key);
    let wrong = [
        (vec![], RecipientsError::Count),
        (vec![good.clone(); 9], RecipientsError::Count),
        (vec![wrap(DataKeyId([6; 16]), Purpose::Native, customers().key)], RecipientsError::DataKeyId),
        (vec![good.clone(), wrap(ID, Purpose::Vault, customers().key)], RecipientsError::Purpose),
        (vec![wrap(ID, Purpose::Native, context(&[]))], RecipientsError::Context),
        (vec![good.clone(), wrap(ID, Purpose::Native, context(&[]))], RecipientsError::Context),
    ];
    for (recipients, why) in wrong {
        assert_eq!(rewrapped(&envelope, recipients), Err(RewrapError::Recipients(why)));
    }
    assert!(rewrapped(&envelope, vec![good.clone(); 8]).is_ok());
    assert!(matches!(rewrapped(b"no envelope", vec![good]), Err(RewrapError::Malformed(_))));
}

#[test]
fn nothing_is_sealed_for_recipients_who_could_not_open_it() {
    let (kek, key, context) = (Kek::new(2), data_key(1), customers());
    let fitting = seal_header(&kek, Purpose::Native, &key, &context);
    let elsewhere = EnvelopeContext { key: self::context(&[("tenant", "other")]), ..customers() };
    let refused = seal(&key, fitting.clone(), &elsewhere, b"", fixed(3));
    assert!(matches!(refused, Err(SealError::Recipients(RecipientsError::Context))));

    let mut none = fitting.clone();
    none.recipients.clear();
    let refused = seal(&key, none, &context, b"", fixed(3));
    assert!(matches!(refused, Err(SealError::Recipients(RecipientsError::Count))));

    let mut other_door = fitting.clone();
    other_door.purpose = Purpose::Vault;
    let refused = seal(&key, other_door, &context, b"", fixed(3));
    assert!(matches!(refused, Err(SealError::Recipients(RecipientsError::Purpose))));

    let mut other_key = fitting;
    other_key.data_key_id = DataKeyId([6; 16]);
    let refused = seal(&key, other_key, &context, b"", fixed(3));
    assert!(matches!(refused, Err(SealError::Recipients(RecipientsError::DataKeyId))));
}

#[test]
fn a_parser_refuses_recipients_of_several_envelopes() {
    let kek = Kek::new(2);
    let header = Header::read(&sealed(&kek, Purpose::Native, b"", 3)[..]).unwrap();
    let two = header.with_recipients(vec![header.recipients()[0].clone(); 2]).unwrap().to_bytes();
    assert!(Header::read(&two[..]).is_ok());
    // Purpose, data-key id and context digest of the second wrapped key, which begins at 88 + 140 + 2.
    for offset in [6, 28, 44] {
        let mut mixed = two.clone();
        mixed[230 + offset] ^= 0b11;
        assert!(Header::read(&mixed[..]).is_err(), "{offset}");
    }
}
