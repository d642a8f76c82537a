//! Streams that break: the writer, the reader, the one who forgets to finish.

use std::io::{self, Read, Write};

use kms_envelope::{
    CHUNK_LEN, Header, OpenError, Opener, Purpose, RandomError, SealError, Sealer, open, seal,
};

use crate::custody::{Kek, customers, data_key, fixed, plaintext, seal_header, sealed};

#[test]
fn an_envelope_without_its_end_does_not_open() {
    let (kek, key, context) = (Kek::new(2), data_key(1), customers());
    for len in [0, 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 3 * CHUNK_LEN + 1] {
        let mut written = Vec::new();
        let header = seal_header(&kek, Purpose::Native, &key, &context);
        let mut sealer = Sealer::new(&mut written, &key, header, &context, fixed(3)).unwrap();
        sealer.write_all(&plaintext(len)).unwrap();
        sealer.flush().unwrap();
        drop(sealer);
        assert!(matches!(kek.open(&written, Purpose::Native, &context), Err(OpenError::NotOpened)), "{len}");
    }
}

#[test]
fn a_stream_that_was_cut_gives_no_end() {
    let whole = sealed(&Kek::new(2), Purpose::Native, &plaintext(2 * CHUNK_LEN), 3);
    let payload_start = whole.len() - 2 * (CHUNK_LEN + 16);
    for cut in [payload_start, payload_start + CHUNK_LEN + 16, whole.len() - 1] {
        for piece_len in [1_000, 2 * CHUNK_LEN] {
            let (mut opener, mut given) = (opener(&whole[..cut]), Vec::new());
            let mut piece = vec![0; piece_len];
            let error = loop {
                match opener.read(&mut piece) {
                    Ok(0) => panic!("an end at {cut}"),
                    Ok(read) => given.extend_from_slice(&piece[..read]),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.get_ref().is_some_and(|inner| inner.is::<OpenError>()));
            assert!(plaintext(2 * CHUNK_LEN).starts_with(&given), "what came was authentic");
            assert!(opener.read(&mut piece).is_err(), "it stays broken");
        }
    }
}

#[test]
fn nothing_is_read_of_a_payload_whose_commitment_does_not_fit() {
    let whole = sealed(&Kek::new(2), Purpose::Native, b"secret", 3);
    let header = Header::read(&whole[..]).unwrap();
    let mut payload = &whole[header.to_bytes().len()..];
    let payload_len = payload.len();
    let opener = Opener::new(&mut payload, &header, &data_key(7), Purpose::Native, &customers());
    assert!(matches!(opener.err(), Some(OpenError::NotOpened)));
    assert_eq!(payload.len(), payload_len);
}

#[test]
fn a_reader_that_fails_may_be_tried_again_and_an_interruption_is_no_failure() {
    let whole = sealed(&Kek::new(2), Purpose::Native, &plaintext(CHUNK_LEN + 7), 3);
    let header = Header::read(&whole[..]).unwrap();
    let payload = &whole[header.to_bytes().len()..];
    let flaky = Flaky { bytes: payload, errors: vec![io::ErrorKind::TimedOut, io::ErrorKind::Interrupted] };
    let mut opener = Opener::new(flaky, &header, &data_key(1), Purpose::Native, &customers()).unwrap();
    let mut given = Vec::new();
    assert_eq!(opener.read_to_end(&mut given).unwrap_err().kind(), io::ErrorKind::TimedOut);
    opener.read_to_end(&mut given).unwrap();
    assert!(given == plaintext(CHUNK_LEN + 7));
}

#[test]
fn after_a_failed_write_there_is_no_end() {
    let (kek, key, context) = (Kek::new(2), data_key(1), customers());
    let header = seal_header(&kek, Purpose::Native, &key, &context);
    let full = Full { room: 300, written: Vec::new() };
    let mut sealer = Sealer::new(full, &key, header.clone(), &context, fixed(3)).unwrap();
    let error = sealer.write_all(&plaintext(3 * CHUNK_LEN)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(sealer.write(b"more").is_err());
    assert!(sealer.flush().is_err());
    assert!(matches!(sealer.finish(), Err(SealError::Io(_))));

    let none = Full { room: 10, written: Vec::new() };
    assert!(matches!(Sealer::new(none, &key, header.clone(), &context, fixed(3)), Err(SealError::Io(_))));
    let enough = Full { room: 1_000, written: Vec::new() };
    let mut sealer = Sealer::new(enough, &key, header, &context, fixed(3)).unwrap();
    sealer.write_all(b"small").unwrap();
    let written = sealer.finish().unwrap().written;
    assert_eq!(open(&key, &written, Purpose::Native, &context).unwrap().expose_secret(), b"small");
}

#[test]
fn no_envelope_is_begun_without_randomness() {
    let (kek, key, context) = (Kek::new(2), data_key(1), customers());
    let header = seal_header(&kek, Purpose::Native, &key, &context);
    let refused = seal(&key, header.clone(), &context, b"", |_| Err(RandomError));
    assert!(matches!(refused, Err(SealError::Random(RandomError))));
    let mut written = Vec::new();
    let refused = Sealer::new(&mut written, &key, header, &context, |_| Err(RandomError));
    assert!(matches!(refused.err(), Some(SealError::Random(RandomError))));
    assert!(written.is_empty());
}

fn opener(mut envelope: &[u8]) -> Opener<&[u8]> {
    let header = Header::read(&mut envelope).unwrap();
    Opener::new(envelope, &header, &data_key(1), Purpose::Native, &customers()).unwrap()
}

/// Gives a few bytes, then one of `errors`, and so on.
struct Flaky<'a> {
    bytes: &'a [u8],
    errors: Vec<io::ErrorKind>,
}

impl Read for Flaky<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.bytes.len().is_multiple_of(2)
            && let Some(error) = self.errors.pop()
        {
            return Err(error.into());
        }
        let len = into.len().min(1_001);
        self.bytes.read(&mut into[..len])
    }
}

/// A disk with little room.
struct Full {
    room: usize,
    written: Vec<u8>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.room);
        if len == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= len;
        self.written.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
