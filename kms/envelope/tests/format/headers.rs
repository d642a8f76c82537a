//! What is no envelope and no wrapped key, found without any key, and told apart.

use std::{cell::Cell, io::Read};

use kms_envelope::{Header, Malformed, OpenError, Purpose, WrapAlgorithm, WrapHeader, WrappedKey};

use crate::custody::{Kek, customers, data_key, sealed};

#[test]
fn a_header_says_what_this_program_does_not_know() {
    let envelope = sealed(&Kek::new(2), Purpose::Native, b"", 3);
    let with = |offset: usize, byte: u8| {
        let mut bytes = envelope.clone();
        bytes[offset] = byte;
        match Header::read(&bytes[..]).unwrap_err() {
            OpenError::Malformed(malformed) => malformed,
            other => panic!("{other}"),
        }
    };
    assert_eq!(with(0, b'k'), Malformed::NotOurs("envelope"));
    assert_eq!(with(4, 2), Malformed::Unknown { what: "format version", found: 2 });
    assert_eq!(with(5, 2), Malformed::Unknown { what: "suite", found: 2 });
    assert_eq!(with(6, 0), Malformed::Unknown { what: "purpose", found: 0 });
    assert!(matches!(with(7, 0), Malformed::Broken(_)));
    assert!(matches!(with(7, 9), Malformed::Broken(_)));
    assert_eq!(with(90, b'k'), Malformed::NotOurs("wrapped key"));
    assert_eq!(with(90 + 4, 9), Malformed::Unknown { what: "format version", found: 9 });
    assert_eq!(with(90 + 5, 3), Malformed::Unknown { what: "wrap algorithm", found: 3 });
    assert!(matches!(with(90 + 7, 1), Malformed::Broken(_)));
}

#[test]
fn a_header_is_cut_off_at_each_of_its_bytes() {
    let header = Header::read(&sealed(&Kek::new(2), Purpose::Native, b"", 3)[..]).unwrap().to_bytes();
    for len in 0..header.len() {
        let read = Header::read(&header[..len]);
        assert!(matches!(read, Err(OpenError::Malformed(Malformed::Cut(_)))), "{len}: {read:?}");
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_of_that_length_is_read() {
    let mut envelope = sealed(&Kek::new(2), Purpose::Native, b"", 3);
    let beyond = u16::try_from(WrappedKey::LEN_MAX + 1).unwrap();
    envelope[88..90].copy_from_slice(&beyond.to_be_bytes());
    let read = Cell::new(0);
    let counted = Counted { bytes: &envelope, read: &read };
    assert!(matches!(Header::read(counted), Err(OpenError::Malformed(Malformed::Broken(_)))));
    assert_eq!(read.get(), 90);
}

#[test]
fn reading_a_header_stops_before_the_payload() {
    let envelope = sealed(&Kek::new(2), Purpose::Native, b"payload", 3);
    let read = Cell::new(0);
    let header = Header::read(Counted { bytes: &envelope, read: &read }).unwrap();
    assert_eq!(read.get(), envelope.len() - (7 + 16));
    let mut written = Vec::new();
    header.write(&mut written).unwrap();
    assert_eq!(written, envelope[..read.get()]);
}

#[test]
fn the_longest_header_is_as_long_as_its_limit() {
    let header = Header::read(&sealed(&Kek::new(2), Purpose::Native, b"", 3)[..]).unwrap();
    let longest = WrapHeader { algorithm: WrapAlgorithm::RsaOaep256, ..*header.recipients()[0].header() };
    let longest = WrappedKey::new(longest, vec![1; WrappedKey::WRAPPED_LEN_MAX]).unwrap();
    assert_eq!(longest.to_bytes().len(), WrappedKey::LEN_MAX);
    let header = header.with_recipients(vec![longest; Header::RECIPIENTS_MAX]).unwrap();
    assert_eq!(header.to_bytes().len(), Header::LEN_MAX);
    assert_eq!(Header::read(&header.to_bytes()[..]).unwrap(), header);
}

#[test]
fn a_wrapped_key_has_a_length_that_its_algorithm_gives() {
    let wrapped =
        Kek::new(2).wrap(&data_key(1), kms_envelope::DataKeyId([5; 16]), Purpose::Native, &customers().key);
    let header = *wrapped.header();
    let oaep = WrapHeader { algorithm: WrapAlgorithm::RsaOaep256, ..header };
    for (header, len, fits) in [
        (header, 43, false),
        (header, 44, true),
        (header, 1_052, true),
        (header, 1_053, false),
        (oaep, 0, false),
        (oaep, 256, true),
        (oaep, 4_096, true),
        (oaep, 4_097, false),
    ] {
        assert_eq!(WrappedKey::new(header, vec![1; len]).is_ok(), fits, "{:?} {len}", header.algorithm);
    }
    let mut bytes = wrapped.to_bytes();
    bytes.push(0);
    assert!(matches!(WrappedKey::parse(&bytes), Err(Malformed::Broken(_))), "something follows");
    let mut bytes = wrapped.to_bytes();
    bytes[24..28].fill(0);
    assert!(matches!(WrappedKey::parse(&bytes), Err(Malformed::Broken(_))), "version 0");
    // 44 bytes were enough for another algorithm, 16 are not for this one.
    let short = [&wrapped.to_bytes()[..76], &[0, 16], &[1; 16]].concat();
    assert!(matches!(WrappedKey::parse(&short), Err(Malformed::Broken(_))), "too short");
}

struct Counted<'a> {
    bytes: &'a [u8],
    read: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.read(into)?;
        self.read.set(self.read.get() + read);
        Ok(read)
    }
}
