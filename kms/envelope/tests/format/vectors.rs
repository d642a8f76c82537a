//! The vectors of `tests/vectors/envelope/`: each file is computed here from its inputs, and must be what is on disk,
//! byte for byte. `KMS_WRITE_VECTORS=1 cargo test -p kms-envelope vectors` writes them.
//! `tests/tests/envelope_vectors.rs` has a decoder in another language open them.

use std::{fs, num::NonZeroU32, path::PathBuf};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use kms_envelope::{
    CHUNK_LEN, DataKey, DataKeyId, Envelope, EnvelopeContext, Malformed, OpenError, Purpose, SealHeader,
    SecretBytes, WrapAlgorithm, WrapHeader, WrappedKey, open, rewrapped, seal,
};
use serde_json::{Map, Value, json};

use crate::custody::{Kek, context, customers, plaintext};

const ID: DataKeyId = DataKeyId([
    0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5d, 0x5e, 0x5f,
]);

#[test]
fn the_vectors_that_open_are_what_their_inputs_give() {
    let vectors: Vec<_> = opening().iter().map(Opening::describe).collect();
    compare("opens.json", &json!({ "vectors": vectors }));
}

#[test]
fn the_vectors_that_do_not_open_are_what_their_inputs_give() {
    let vectors = [refused_envelopes(), refused_wrapped_keys()].concat();
    compare("refused.json", &json!({ "vectors": vectors }));
}

#[test]
fn the_example_in_the_documentation_is_the_small_vector() {
    let page = fs::read_to_string(directory().join("../../../docs/reference/envelope-format.md")).unwrap();
    let example = page.split_once("Offset, bytes, meaning:").unwrap().1.split("```").nth(1).unwrap();
    let mut documented = String::new();
    for line in example.lines().filter(|line| !line.is_empty()) {
        let mut columns = line.split_whitespace();
        assert_eq!(columns.next().unwrap().parse(), Ok(documented.len() / 2), "{line}");
        documented += columns.next().unwrap();
    }
    assert_eq!(documented, hex(&opening()[1].envelope()));
}

/// What a vector is made of.
struct Opening {
    name: &'static str,
    purpose: Purpose,
    context: EnvelopeContext,
    plaintext: Vec<u8>,
    /// Versions of the key-encryption key; each makes a recipient.
    keks: &'static [u8],
    /// Whether the RSA key is a recipient too.
    rsa: bool,
}

fn opening() -> Vec<Opening> {
    let plain = |name, plaintext| Opening {
        name,
        purpose: Purpose::Native,
        context: customers(),
        plaintext,
        keks: &[2],
        rsa: false,
    };
    let none = || EnvelopeContext::default();
    let accents = EnvelopeContext {
        key: context(&[("ville", "Orl\u{e9}ans"), ("Z", ""), ("\u{e9}t\u{e9}", "\u{1f511}")]),
        local: context(&[("colonne", "pr\u{e9}nom")]),
    };
    vec![
        plain("empty", vec![]),
        plain("small", b"a small secret".to_vec()),
        Opening { context: none(), ..plain("no context", b"a small secret".to_vec()) },
        Opening { context: accents, ..plain("names and values beyond ASCII", b"a small secret".to_vec()) },
        Opening { purpose: Purpose::Vault, ..plain("vault", b"a small secret".to_vec()) },
        Opening { purpose: Purpose::Kubernetes, ..plain("kubernetes", b"a small secret".to_vec()) },
        Opening { keks: &[2, 3], ..plain("two recipients", b"a small secret".to_vec()) },
        Opening { rsa: true, ..plain("two recipients, one with RSA", b"a small secret".to_vec()) },
        plain("a byte less than a chunk", plaintext(CHUNK_LEN - 1)),
        plain("exactly a chunk", plaintext(CHUNK_LEN)),
        plain("a byte more than a chunk", plaintext(CHUNK_LEN + 1)),
        plain("exactly two chunks", plaintext(2 * CHUNK_LEN)),
        plain("four chunks", plaintext(3 * CHUNK_LEN + 1_000)),
    ]
}

impl Opening {
    fn recipients(&self) -> Vec<WrappedKey> {
        let aes = self
            .keks
            .iter()
            .map(|seed| Kek::new(*seed).wrap(&data_key(), ID, self.purpose, &self.context.key));
        aes.chain(self.rsa.then(|| rsa_recipient(&self.context).0)).collect()
    }

    fn envelope(&self) -> Vec<u8> {
        let header = SealHeader { recipients: self.recipients(), purpose: self.purpose, data_key_id: ID };
        let envelope = seal(&data_key(), header, &self.context, &self.plaintext, |salt| {
            salt.copy_from_slice(&SALT);
            Ok(())
        })
        .unwrap();
        assert!(
            Kek::new(self.keks[0]).open(&envelope, self.purpose, &self.context).unwrap() == self.plaintext
        );
        envelope
    }

    fn describe(&self) -> Value {
        let envelope = self.envelope();
        let aes = self.keks.iter().map(|seed| {
            json!({
                "algorithm": "A256GCMKW",
                "key_uid": hex(&[*seed; 16]),
                "key_version": seed,
                "kek": hex(&[*seed; 32]),
                "iv": hex(&[9; 12]),
            })
        });
        let recipients: Vec<_> = aes.chain(self.rsa.then(|| rsa_recipient(&self.context).1)).collect();
        let mut vector = json!({
            "name": self.name,
            "purpose": name(self.purpose),
            "data_key": hex(data_key().expose_secret()),
            "data_key_id": hex(&ID.0),
            "salt": hex(&SALT),
            "key_context": pairs(&self.context.key),
            "local_context": pairs(&self.context.local),
            "recipients": recipients,
            "plaintext_len": self.plaintext.len(),
            "plaintext_sha256": sha256(&self.plaintext),
            "envelope_sha256": sha256(&envelope),
        });
        if self.plaintext.len() < 1_000 {
            vector["plaintext"] = hex(&self.plaintext).into();
            vector["envelope"] = hex(&envelope).into();
        } else {
            let header = Envelope::parse(&envelope).unwrap().header().to_bytes();
            vector["envelope_header"] = hex(&header).into();
        }
        vector
    }
}

/// Each is the small envelope, changed.
fn refused_envelopes() -> Vec<Value> {
    let small = opening().remove(1);
    let whole = small.envelope();
    let payload = whole.len() - Envelope::parse(&whole).unwrap().payload().len();
    let at = |offsets: &[usize], bits: u8| {
        let mut bytes = whole.clone();
        offsets.iter().for_each(|offset| bytes[*offset] ^= bits);
        bytes
    };
    let EnvelopeContext { key, local } = customers();
    let elsewhere = |key, local| EnvelopeContext { key, local };
    let same = customers;
    let other_recipient = Kek::new(3).wrap(&data_key(), ID, Purpose::Native, &key);
    let moved_pair =
        elsewhere(context(&[("tenant", "acme")]), context(&[("table", "customers"), ("row", "17")]));
    let native = Purpose::Native;
    let cases = [
        ("another local context", whole.clone(), elsewhere(key.clone(), context(&[("row", "18")])), native),
        ("no local context", whole.clone(), elsewhere(key.clone(), context(&[])), native),
        ("another key context", whole.clone(), elsewhere(context(&[("tenant", "acme")]), local), native),
        ("a pair moved from key to local context", whole.clone(), moved_pair, native),
        ("opened at another door", whole.clone(), same(), Purpose::Vault),
        ("moved to another door", at(&[6, 96], 0b11), same(), Purpose::Vault),
        ("another data-key id", at(&[8, 118], 1), same(), native),
        ("another salt", at(&[24], 1), same(), native),
        ("another commitment", at(&[87], 1), same(), native),
        ("a bit of the ciphertext", at(&[payload], 1), same(), native),
        ("a bit of the tag", at(&[whole.len() - 1], 0x80), same(), native),
        ("cut by a byte", whole[..whole.len() - 1].to_vec(), same(), native),
        ("cut within its tag", whole[..payload + 9].to_vec(), same(), native),
        ("without payload", whole[..payload].to_vec(), same(), native),
        ("extended by a byte", [&whole[..], &[0]].concat(), same(), native),
        ("twice", whole.repeat(2), same(), native),
        ("no envelope", at(&[0], 0x20), same(), native),
        ("newer format", at(&[4], 0b11), same(), native),
        ("unknown suite", at(&[5], 0b11), same(), native),
        ("unknown purpose", at(&[6], 0b1000), same(), native),
        ("no recipient", at(&[7], 1), same(), native),
        ("nine recipients", at(&[7], 0b1000), same(), native),
        ("data-key id of the envelope alone", at(&[8], 1), same(), native),
        ("purpose of the envelope alone", at(&[6], 0b11), same(), Purpose::Vault),
        ("a recipient too long", at(&[88], 0x10), same(), native),
        ("cut within its header", whole[..100].to_vec(), same(), native),
        (
            "recipients of two contexts",
            {
                let mut two = rewrapped(&whole, vec![other_recipient.clone(), other_recipient]).unwrap();
                two[230 + 44] ^= 1;
                two
            },
            same(),
            native,
        ),
    ];
    cases
        .into_iter()
        .map(|(what, envelope, context, expected)| {
            let error = open(&data_key(), &envelope, expected, &context).unwrap_err();
            json!({
                "name": what,
                "error": if matches!(error, OpenError::NotOpened) { "not-opened" } else { "malformed" },
                "purpose": name(expected),
                "data_key": hex(data_key().expose_secret()),
                "key_context": pairs(&context.key),
                "local_context": pairs(&context.local),
                "envelope": hex(&envelope),
            })
        })
        .collect()
}

fn refused_wrapped_keys() -> Vec<Value> {
    let kek = Kek::new(2);
    let key = customers().key;
    let whole = kek.wrap(&data_key(), ID, Purpose::Native, &key).to_bytes();
    let at = |offset: usize, bits: u8| {
        let mut bytes = whole.clone();
        bytes[offset] ^= bits;
        bytes
    };
    let cases = [
        ("wrapped key: another context", whole.clone(), context(&[("tenant", "acme")])),
        ("wrapped key: another purpose", at(6, 0b11), key.clone()),
        ("wrapped key: another key uid", at(8, 1), key.clone()),
        ("wrapped key: another version", at(27, 1), key.clone()),
        ("wrapped key: another data-key id", at(28, 1), key.clone()),
        ("wrapped key: another digest", at(44, 1), key.clone()),
        ("wrapped key: a bit of the IV", at(78, 1), key.clone()),
        ("wrapped key: a bit of the ciphertext", at(90, 1), key.clone()),
        ("wrapped key: a bit of the tag", at(137, 1), key.clone()),
        ("wrapped key: none", at(0, 0x20), key.clone()),
        ("wrapped key: newer format", at(4, 0b11), key.clone()),
        ("wrapped key: unknown algorithm", at(5, 0b111), key.clone()),
        ("wrapped key: reserved byte", at(7, 1), key.clone()),
        ("wrapped key: version 0", at(27, 2), key.clone()),
        ("wrapped key: cut by a byte", whole[..137].to_vec(), key.clone()),
        ("wrapped key: extended by a byte", [&whole[..], &[0]].concat(), key.clone()),
        ("wrapped key: too short for its algorithm", [&whole[..76], &[0, 43], &[0; 43]].concat(), key),
    ];
    cases
        .into_iter()
        .map(|(what, bytes, context)| {
            let parsed = WrappedKey::parse(&bytes);
            assert!(!matches!(parsed, Err(Malformed::Cut(_))) || bytes.len() == 137);
            // Under the right KEK, whatever the header says: it is the wrap that must hold.
            let unwrapped =
                parsed.as_ref().ok().map(|wrapped| kek.unwrap_whatever_it_says(wrapped, &context));
            assert!(!matches!(unwrapped, Some(Some(_))), "{what}");
            json!({
                "name": what,
                "error": if parsed.is_ok() { "not-opened" } else { "malformed" },
                "kek": hex(&[2; 32]),
                "key_context": pairs(&context),
                "wrapped_key": hex(&bytes),
            })
        })
        .collect()
}

const SALT: [u8; 32] = {
    let mut salt = [0xa0; 32];
    let mut at = 0;
    while at < 32 {
        salt[at] += at as u8;
        at += 1;
    }
    salt
};

fn data_key() -> DataKey {
    DataKey::from_secret(SecretBytes::new((0..32).collect())).unwrap()
}

/// The recipient that cannot be computed, because OAEP is randomised; it is opened with its private key instead.
fn rsa_recipient(context: &EnvelopeContext) -> (WrappedKey, Value) {
    let mut input: Map<String, Value> =
        serde_json::from_slice(&fs::read(directory().join("rsa-recipient.json")).unwrap()).unwrap();
    input.remove("comment");
    let [uid, private_key, wrapped] =
        ["key_uid", "private_key", "wrapped"].map(|field| unhex(input[field].as_str().unwrap()));
    let header = WrapHeader {
        algorithm: WrapAlgorithm::RsaOaep256,
        purpose: Purpose::Native,
        key_uid: uid.try_into().unwrap(),
        key_version: NonZeroU32::MIN,
        data_key_id: ID,
        context_digest: context.key.digest(),
    };
    let key = OaepPrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(&private_key).unwrap()).unwrap();
    let mut buffer = vec![0; key.min_output_size()];
    let opened = key.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut buffer, Some(&header.aad())).unwrap();
    assert_eq!(opened, data_key().expose_secret());
    input.insert("algorithm".to_owned(), "RSA-OAEP-256".into());
    (WrappedKey::new(header, wrapped).unwrap(), input.into())
}

fn compare(file: &str, computed: &Value) {
    let path = directory().join(file);
    if std::env::var_os("KMS_WRITE_VECTORS").is_some() {
        fs::write(&path, serde_json::to_string_pretty(computed).unwrap() + "\n").unwrap();
    }
    // By value: in which order members stand depends on what else is built beside this crate.
    let stored: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(stored == *computed, "{file} is not what its inputs give; see the head of vectors.rs");
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "vectors", "envelope"].iter().collect()
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Native => "native",
        Purpose::Vault => "vault",
        Purpose::Kubernetes => "kubernetes",
    }
}

fn pairs(context: &kms_envelope::EncryptionContext) -> Value {
    context.pairs().map(|(name, value)| (name.to_owned(), value.into())).collect::<Map<_, _>>().into()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2);
    digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
