//! Every way to change an envelope without its key. None opens.

use std::time::Instant;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use kms_envelope::{CHUNK_LEN, EnvelopeContext, Header, OpenError, Purpose, WrappedKey, open, seal};

use crate::custody::{Kek, customers, data_key, plaintext, seal_header, sealed};

const SEALED_CHUNK_LEN: usize = CHUNK_LEN + 16;

#[test]
fn no_envelope_opens_of_which_one_bit_was_flipped() {
    let kek = Kek::new(2);
    let whole = sealed(&kek, Purpose::Native, b"a small secret", 3);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        for expected in [Purpose::Native, Purpose::Vault, Purpose::Kubernetes] {
            assert!(kek.open(&flipped, expected, &customers()).is_err(), "bit {bit} as {expected:?}");
        }
    }
    assert_eq!(kek.open(&whole, Purpose::Native, &customers()).unwrap(), b"a small secret");
}

#[test]
fn no_wrapped_key_unwraps_of_which_one_bit_was_flipped() {
    let kek = Kek::new(2);
    let envelope = sealed(&kek, Purpose::Native, b"", 3);
    let wrapped = Header::read(&envelope[..]).unwrap().recipients()[0].to_bytes();
    for bit in 0..wrapped.len() * 8 {
        let mut flipped = wrapped.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let unwrapped = WrappedKey::parse(&flipped).ok().and_then(|key| kek.unwrap(&key, &customers().key));
        assert!(unwrapped.is_none(), "bit {bit}");
    }
    let unwrapped = kek.unwrap(&WrappedKey::parse(&wrapped).unwrap(), &customers().key).unwrap();
    assert_eq!(unwrapped.expose_secret(), [1; 32]);
}

#[test]
fn no_envelope_opens_that_was_cut_off_or_extended() {
    let kek = Kek::new(2);
    let whole = sealed(&kek, Purpose::Native, b"a small secret", 3);
    for len in 0..whole.len() {
        assert!(kek.open(&whole[..len], Purpose::Native, &customers()).is_err(), "cut to {len}");
    }
    for extension in [1, 15, 16, 17, 100, SEALED_CHUNK_LEN] {
        let extended = [&whole[..], &vec![0; extension]].concat();
        assert!(kek.open(&extended, Purpose::Native, &customers()).is_err(), "{extension} more");
    }
    for len in 1..whole.len() {
        assert!(kek.open(&whole[len..], Purpose::Native, &customers()).is_err(), "without its first {len}");
    }
}

#[test]
fn no_long_envelope_opens_that_was_cut_off_near_the_ends_of_its_chunks() {
    let kek = Kek::new(2);
    for len in [CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 2 * CHUNK_LEN + 20] {
        let whole = sealed(&kek, Purpose::Native, &plaintext(len), 3);
        let payload_start = Header::read(&whole[..]).unwrap().to_bytes().len();
        let ends = (0..=3).map(|chunk| payload_start + chunk * SEALED_CHUNK_LEN);
        for cut in ends.flat_map(|end| end.saturating_sub(18)..end + 18).filter(|cut| *cut < whole.len()) {
            assert!(kek.open(&whole[..cut], Purpose::Native, &customers()).is_err(), "{len} cut to {cut}");
        }
        for more in [1, 16, 17, SEALED_CHUNK_LEN] {
            let extended = [&whole[..], &vec![0; more]].concat();
            assert!(kek.open(&extended, Purpose::Native, &customers()).is_err(), "{len} and {more} more");
        }
    }
}

#[test]
fn chunks_open_in_one_order_only_and_all_of_them() {
    let kek = Kek::new(2);
    let whole = sealed(&kek, Purpose::Native, &plaintext(3 * CHUNK_LEN + 9), 3);
    let payload_start = Header::read(&whole[..]).unwrap().to_bytes().len();
    let (header, payload) = whole.split_at(payload_start);
    let chunks: Vec<_> = payload.chunks(SEALED_CHUNK_LEN).collect();
    let mut opened = 0;
    for order in orders(chunks.len(), 4) {
        let payload: Vec<_> = order.iter().map(|chunk| chunks[*chunk]).collect();
        let envelope = [header, &payload.concat()].concat();
        let is_whole = order == [0, 1, 2, 3];
        assert_eq!(kek.open(&envelope, Purpose::Native, &customers()).is_ok(), is_whole, "{order:?}");
        opened += usize::from(is_whole);
    }
    assert_eq!(opened, 1);
}

#[test]
fn an_empty_chunk_at_the_end_is_refused_even_from_somebody_who_has_the_key() {
    let kek = Kek::new(2);
    let whole = sealed(&kek, Purpose::Native, &plaintext(CHUNK_LEN), 3);
    let (header, _) = split(whole);
    let key = payload_key(&customers(), &Header::read(&header[..]).unwrap());
    let chunk = |text: &[u8], counter: u8, last: u8| {
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, counter, last]);
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut text).unwrap();
        text
    };
    let with = |chunks: &[Vec<u8>]| [&header[..], &chunks.concat()].concat();
    let text = plaintext(CHUNK_LEN);
    let regular = with(&[chunk(&text, 0, 1)]);
    assert_eq!(kek.open(&regular, Purpose::Native, &customers()).unwrap(), text);
    let with_one_more = with(&[chunk(&text, 0, 0), chunk(b"", 1, 1)]);
    assert!(kek.open(&with_one_more, Purpose::Native, &customers()).is_err());
}

#[test]
fn two_envelopes_are_not_one() {
    let kek = Kek::new(2);
    for (first, second) in [(0, 0), (5, 5), (CHUNK_LEN, 5), (CHUNK_LEN, CHUNK_LEN)] {
        let both = [
            sealed(&kek, Purpose::Native, &plaintext(first), 3),
            sealed(&kek, Purpose::Native, &plaintext(second), 4),
        ]
        .concat();
        let opened = kek.open(&both, Purpose::Native, &customers());
        assert!(matches!(opened, Err(OpenError::NotOpened)), "{first} and {second}");
    }
}

#[test]
fn no_header_opens_the_payload_of_another() {
    // All under one data key and in one context: each knows it, and only its own salt sets it apart.
    let is_full = std::env::var_os("KMS_TORTURE").is_some_and(|value| value == "1");
    let count = if is_full { 1_000 } else { 60 };
    let (began, kek) = (Instant::now(), Kek::new(2));
    let envelopes: Vec<_> = (0..count)
        .map(|number: u32| {
            let purpose = [Purpose::Native, Purpose::Vault, Purpose::Kubernetes][number as usize % 3];
            // Two lengths, so that what stands at an offset is not always a chunk.
            let plaintext = plaintext(20 + number as usize % 2);
            let (key, context) = (data_key(1), customers());
            let header = seal_header(&kek, purpose, &key, &context);
            let envelope = seal(&key, header, &context, &plaintext, |salt| {
                salt[..4].copy_from_slice(&number.to_be_bytes());
                Ok(())
            });
            (purpose, split(envelope.unwrap()))
        })
        .collect();
    let mut opened = 0;
    for (at, (purpose, (header, _))) in envelopes.iter().enumerate() {
        for (from, (_, (_, payload))) in envelopes.iter().enumerate() {
            let swapped = [&header[..], payload].concat();
            let result = open(&data_key(1), &swapped, *purpose, &customers());
            assert_eq!(result.is_ok(), at == from, "header {at}, payload {from}");
            opened += usize::from(result.is_ok());
        }
    }
    assert_eq!(opened, envelopes.len());
    let (which, others) = (if is_full { "full" } else { "sample" }, envelopes.len() * (envelopes.len() - 1));
    println!(
        "\nPROMISE | 13 | {which}: {count} envelopes under one data key, every header with every other's payload | \
         {others} pairs: 0 opened | | {} s |",
        began.elapsed().as_secs()
    );
}

/// Header and payload.
fn split(mut envelope: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let payload = envelope.split_off(Header::read(&envelope[..]).unwrap().to_bytes().len());
    (envelope, payload)
}

/// The payload's key, derived once more as docs/reference/envelope-format.md says, for a native envelope.
fn payload_key(context: &EnvelopeContext, header: &Header) -> LessSafeKey {
    let salt: [u8; 32] = header.to_bytes()[24..56].try_into().unwrap();
    let mut aad = b"kms payload v1\0\x01\x01\x01".to_vec();
    aad.extend(header.data_key_id().0);
    aad.extend(salt);
    for context in [&context.key, &context.local] {
        let canonical = context.canonical();
        aad.extend(u32::try_from(canonical.len()).unwrap().to_be_bytes());
        aad.extend(canonical);
    }
    let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salt), &[1; 32]);
    let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref()), &[&aad[..], &[1]].concat());
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap())
}

/// All sequences of at most `len_max` numbers below `count`, the empty one too.
fn orders(count: usize, len_max: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..len_max {
        longest = longest
            .iter()
            .flat_map(|order| (0..count).map(move |next| [&order[..], &[next]].concat()))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}
