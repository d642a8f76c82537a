//! Every size at which something changes, through memory and through streams.

use std::io::{self, Read, Write};

use kms_envelope::{CHUNK_LEN, Header, Opener, Purpose, Sealer, open, seal};

use crate::custody::{Kek, customers, data_key, fixed, plaintext, seal_header, sealed};

/// Lengths of plaintexts, and how many chunks they give.
const SIZES: [(usize, usize); 9] = [
    (0, 1),
    (1, 1),
    (1_000, 1),
    (CHUNK_LEN - 1, 1),
    (CHUNK_LEN, 1),
    (CHUNK_LEN + 1, 2),
    (2 * CHUNK_LEN, 2),
    (2 * CHUNK_LEN + 1, 3),
    (3 * CHUNK_LEN, 3),
];

#[test]
fn what_was_sealed_opens_at_every_size_and_costs_a_tag_per_chunk() {
    let kek = Kek::new(2);
    for (len, chunks) in SIZES {
        let envelope = sealed(&kek, Purpose::Native, &plaintext(len), 3);
        let header_len = Header::read(&envelope[..]).unwrap().to_bytes().len();
        assert_eq!(envelope.len(), header_len + len + chunks * 16, "{len}");
        assert_eq!(kek.open(&envelope, Purpose::Native, &customers()).unwrap(), plaintext(len), "{len}");
    }
}

#[test]
fn a_stream_gives_the_same_bytes_however_it_is_cut() {
    let kek = Kek::new(2);
    let (key, context) = (data_key(1), customers());
    for (len, _) in SIZES {
        let plaintext = plaintext(len);
        let header = seal_header(&kek, Purpose::Vault, &key, &context);
        let whole = seal(&key, header.clone(), &context, &plaintext, fixed(4)).unwrap();
        for step in [1_000, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, usize::MAX] {
            let mut sealer = Sealer::new(Vec::new(), &key, header.clone(), &context, fixed(4)).unwrap();
            for piece in plaintext.chunks(step) {
                sealer.write_all(piece).unwrap();
                sealer.flush().unwrap();
            }
            assert!(sealer.finish().unwrap() == whole, "{len} in pieces of {step}");

            let mut rest = Trickle { bytes: &whole, step };
            let header = Header::read(&mut rest).unwrap();
            let mut opener = Opener::new(rest, &header, &key, Purpose::Vault, &context).unwrap();
            let mut opened = Vec::new();
            let mut piece = vec![0; step.min(3 * CHUNK_LEN)];
            loop {
                match opener.read(&mut piece).unwrap() {
                    0 => break,
                    read => opened.extend_from_slice(&piece[..read]),
                }
            }
            assert!(opened == plaintext, "{len} in pieces of {step}");
            assert_eq!(opener.read(&mut piece).unwrap(), 0, "the end stays the end");
        }
        assert_eq!(open(&key, &whole, Purpose::Vault, &context).unwrap().expose_secret(), plaintext);
    }
}

/// Gives at most `step` bytes a read.
struct Trickle<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.step.min(into.len());
        self.bytes.read(&mut into[..len])
    }
}
