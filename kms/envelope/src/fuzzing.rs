//! What must hold of every decoder whatever it is given. `tests/fuzz` calls these with what a fuzzer makes up;
//! `kms/envelope/tests/corpus.rs` with every input that once was interesting.

use std::{collections::BTreeMap, io::Read as _};

use crate::{
    ContextError, DataKey, EncryptionContext, Envelope, EnvelopeContext, Header, Opener, Purpose,
    RandomError, SealHeader, SecretBytes, WrappedKey, seal,
};

/// A wrapped key that parses has exactly these bytes.
pub fn wrapped_key(bytes: &[u8]) {
    if let Ok(wrapped) = WrappedKey::parse(bytes) {
        assert!(wrapped.to_bytes() == bytes, "a wrapped key has two encodings");
        assert_eq!(wrapped.header().aad()[12..], bytes[..76]);
    }
}

/// A header that reads has exactly these bytes, and reads the same when it comes byte by byte.
pub fn envelope_header(bytes: &[u8]) {
    let mut rest = bytes;
    let read = Header::read(&mut rest);
    let slowly = Header::read(ByteByByte(bytes));
    assert_eq!(read.as_ref().ok(), slowly.as_ref().ok());
    if let Ok(header) = read {
        let encoded = header.to_bytes();
        assert!(encoded.len() <= Header::LEN_MAX);
        assert!([&encoded, rest].concat() == bytes, "a header has two encodings");
        let recipients = header.recipients().to_vec();
        assert_eq!(header.with_recipients(recipients).as_ref(), Ok(&header));
    }
}

/// What opens under the data key of 32 bytes 1, in memory and as a stream alike, is what sealing it again gives.
/// Context: `{"table": "customers"}` and `{"row": "17"}`.
pub fn envelope_open(bytes: &[u8]) {
    let (Ok(envelope), Some((data_key, context))) = (Envelope::parse(bytes), known()) else { return };
    let expected = Purpose::Native;
    let whole = envelope.open(&data_key, expected, &context);
    let mut streamed = Vec::new();
    let end = Opener::new(ByteByByte(envelope.payload()), envelope.header(), &data_key, expected, &context)
        .and_then(|mut opener| Ok(opener.read_to_end(&mut streamed)?));
    assert_eq!(whole.is_ok(), end.is_ok(), "memory and stream disagree");
    let Ok(plaintext) = whole else { return };
    assert!(plaintext.expose_secret() == streamed, "memory and stream disagree");
    let header = SealHeader {
        recipients: envelope.header().recipients().to_vec(),
        purpose: expected,
        data_key_id: envelope.header().data_key_id(),
    };
    let salt = &bytes[24..56];
    let again = seal(&data_key, header, &context, plaintext.expose_secret(), |bytes| {
        bytes.copy_from_slice(salt);
        Ok::<(), RandomError>(())
    });
    // Recipients of another key context open nothing, and nothing is sealed for them.
    assert!(again.is_err() || again.is_ok_and(|again| again == bytes), "an envelope has two encodings");
}

/// A context keeps its limits, and its encoding gives its pairs back in their order.
pub fn context(bytes: &[u8]) {
    let pairs = pairs_in(bytes);
    let distinct: BTreeMap<_, _> = pairs.iter().cloned().collect();
    let context = match EncryptionContext::new(pairs.clone()) {
        Ok(context) => context,
        Err(error) => {
            let len = pairs.iter().fold(2, |len, (name, value)| len + 4 + name.len() + value.len());
            assert!(match error {
                ContextError::Pairs => pairs.len() > EncryptionContext::PAIRS_MAX,
                ContextError::NameLen(len) => !(1..=EncryptionContext::NAME_LEN_MAX).contains(&len),
                ContextError::ValueLen { len, .. } => len > EncryptionContext::VALUE_LEN_MAX,
                ContextError::Duplicate(_) => distinct.len() < pairs.len(),
                ContextError::Len => len > EncryptionContext::CANONICAL_LEN_MAX,
            });
            return;
        }
    };
    assert_eq!(distinct.len(), pairs.len());
    let canonical = context.canonical();
    assert!(canonical.len() <= EncryptionContext::CANONICAL_LEN_MAX);
    let reversed = EncryptionContext::new(pairs.into_iter().rev());
    assert_eq!(reversed.map(|reversed| reversed.digest()), Ok(context.digest()));
    assert_eq!(decoded(&canonical), Some(distinct.into_iter().collect()));
}

fn known() -> Option<(DataKey, EnvelopeContext)> {
    let context =
        |name: &str, value: &str| EncryptionContext::new([(name.to_owned(), value.to_owned())]).ok();
    let context = EnvelopeContext { key: context("table", "customers")?, local: context("row", "17")? };
    Some((DataKey::from_secret(SecretBytes::new(vec![1; DataKey::LEN])).ok()?, context))
}

/// Names after a byte with their length, values after two.
fn pairs_in(mut bytes: &[u8]) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while let Some((&len, rest)) = bytes.split_first() {
        let (name, rest) = rest.split_at(rest.len().min(usize::from(len)));
        let (len, rest) =
            rest.split_first_chunk().map_or((0, rest), |(len, rest)| (u16::from_be_bytes(*len), rest));
        let (value, rest) = rest.split_at(rest.len().min(usize::from(len)));
        pairs.push([name, value].map(|text| String::from_utf8_lossy(text).into_owned()).into());
        bytes = rest;
    }
    pairs
}

fn decoded(mut canonical: &[u8]) -> Option<Vec<(String, String)>> {
    let number = |bytes: &mut &[u8]| {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(usize::from(u16::from_be_bytes(*number)))
    };
    let count = number(&mut canonical)?;
    let mut text = || {
        let len = number(&mut canonical)?;
        let (text, rest) = canonical.split_at_checked(len)?;
        canonical = rest;
        String::from_utf8(text.to_vec()).ok()
    };
    let pairs = (0..count).map(|_| Some((text()?, text()?))).collect::<Option<_>>()?;
    canonical.is_empty().then_some(pairs)
}

struct ByteByByte<'a>(&'a [u8]);

impl std::io::Read for ByteByByte<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = into.len().min(1);
        self.0.read(&mut into[..len])
    }
}
