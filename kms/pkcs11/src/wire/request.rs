//! Pool to worker: one request per operation.

use std::fmt;

use kms_core::{
    Algorithm,
    algorithm::{Curve, KeySpec, Modulus},
    epoch::Step,
    hsm::{CkaId, Cursor, KekRef, KeyRef, KnownAnswer, NewKey, SecretKeyRef, SignInput, Usage},
};
use kms_envelope::SecretBytes;

use super::{
    codec::{Body, Malformed, Put, entry_of, index_of},
    listing,
};

/// One operation, as it crosses the wire.
#[derive(Debug)]
pub struct Request {
    /// Names it in the answer.
    pub id: u64,
    /// When the caller no longer wants it: CLOCK_MONOTONIC, nanoseconds.
    pub deadline_ns: u64,
    /// What is to be done.
    pub operation: Operation,
}

/// What a worker can do. Mirrors [`kms_core::Hsm`].
#[derive(Debug)]
pub enum Operation {
    /// Make a key pair or a secret key.
    Generate(NewKey),
    /// Read back what is there.
    Find(CkaId),
    /// Sign.
    Sign {
        /// With this key,
        key: KeyRef,
        /// by this algorithm,
        algorithm: Algorithm,
        /// this.
        input: SignInput,
    },
    /// Destroy a key.
    Destroy(CkaId),
    /// A step of the epoch.
    Epoch(Step),
    /// The canary.
    Check,
    /// Read one page of what is there, from this place on.
    List(Option<Cursor>),
    /// Wrap.
    WrapKey {
        /// Under this key,
        key: SecretKeyRef,
        /// this,
        plaintext: SecretBytes,
        /// bound to this.
        aad: Opaque,
    },
    /// Unwrap.
    UnwrapKey {
        /// Under this key,
        key: KekRef,
        /// this,
        wrapped: Opaque,
        /// bound to this.
        aad: Opaque,
    },
}

/// Bytes of a caller. Debug shows their length alone.
pub struct Opaque(pub Vec<u8>);

impl Operation {
    /// Whether it may be made again when nobody knows whether it was made: it leaves nothing behind, or looks first.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Find(_) | Self::Sign { .. } | Self::Check | Self::Epoch(_) | Self::List(_) => true,
            // Each try has an IV of its own.
            Self::WrapKey { .. } | Self::UnwrapKey { .. } => true,
            Self::Generate(_) | Self::Destroy(_) => false,
        }
    }

    /// The key that it uses, whose handle may be known already.
    pub fn used_key(&self) -> Option<CkaId> {
        match self {
            Self::Sign { key, .. } => Some(key.id),
            Self::WrapKey { key, .. } => Some(key.id),
            Self::UnwrapKey { key, .. } => Some(key.id()),
            Self::Generate(_)
            | Self::Find(_)
            | Self::Destroy(_)
            | Self::Epoch(_)
            | Self::Check
            | Self::List(_) => None,
        }
    }
}

const USAGES: [Usage; 3] = [Usage::Sign, Usage::Decrypt, Usage::EncryptDecrypt];
const SPECS: [KeySpec; 8] = [
    KeySpec::Ec(Curve::P256),
    KeySpec::Ec(Curve::P384),
    KeySpec::Ec(Curve::P521),
    KeySpec::Rsa(Modulus::Bits2048),
    KeySpec::Rsa(Modulus::Bits3072),
    KeySpec::Rsa(Modulus::Bits4096),
    KeySpec::Ed25519,
    KeySpec::Aes256,
];

impl Request {
    /// Most bytes of its body, when it holds a secret.
    pub fn secret_len_max(&self) -> Option<usize> {
        match &self.operation {
            Operation::WrapKey { plaintext, aad, .. } => {
                Some(plaintext.expose_secret().len() + aad.0.len() + KnownAnswer::LEN + 64)
            }
            _ => None,
        }
    }

    /// Appends the body of the request.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id);
        out.put_u64(self.deadline_ns);
        match &self.operation {
            Operation::Generate(new) => {
                out.put_u8(0);
                out.put_raw(new.id.as_bytes());
                out.put_bytes(new.label.as_bytes());
                out.put_u8(index_of(&SPECS, &new.spec));
                out.put_u8(index_of(&USAGES, &new.usage));
            }
            Operation::Find(id) => {
                out.put_u8(1);
                out.put_raw(id.as_bytes());
            }
            Operation::Sign { key, algorithm, input } => {
                out.put_u8(2);
                out.put_raw(key.id.as_bytes());
                out.put_raw(&key.spki_sha256);
                out.put_u8(index_of(&Algorithm::ALL, algorithm));
                let (tag, bytes) = match input {
                    SignInput::Digest(bytes) => (0, bytes),
                    SignInput::Message(bytes) => (1, bytes),
                };
                out.put_u8(tag);
                out.put_bytes(bytes);
            }
            Operation::Destroy(id) => {
                out.put_u8(3);
                out.put_raw(id.as_bytes());
            }
            Operation::Check => out.put_u8(4),
            Operation::Epoch(step) => {
                out.put_u8(5);
                match step {
                    Step::Read => out.put_u8(0),
                    Step::Create(mark) => {
                        out.put_u8(1);
                        out.put_mark(mark);
                    }
                    Step::Destroy(mark) => {
                        out.put_u8(2);
                        out.put_mark(mark);
                    }
                }
            }
            Operation::List(after) => {
                out.put_u8(6);
                listing::encode_cursor(after.as_ref(), out);
            }
            Operation::WrapKey { key, plaintext, aad } => {
                out.put_u8(7);
                encode_secret_key(key, out);
                out.put_bytes(plaintext.expose_secret());
                out.put_bytes(&aad.0);
            }
            Operation::UnwrapKey { key, wrapped, aad } => {
                out.put_u8(8);
                match key {
                    KekRef::Secret(key) => {
                        out.put_u8(0);
                        encode_secret_key(key, out);
                    }
                    KekRef::Pair(key) => {
                        out.put_u8(1);
                        out.put_raw(key.id.as_bytes());
                        out.put_raw(&key.spki_sha256);
                    }
                }
                out.put_bytes(&wrapped.0);
                out.put_bytes(&aad.0);
            }
        }
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| {
            let (id, deadline_ns) = (body.u64()?, body.u64()?);
            let operation = match body.u8()? {
                0 => Operation::Generate(NewKey {
                    id: CkaId::from_bytes(body.array()?),
                    label: body.text()?,
                    spec: entry_of(&SPECS, body.u8()?)?,
                    usage: entry_of(&USAGES, body.u8()?)?,
                }),
                1 => Operation::Find(CkaId::from_bytes(body.array()?)),
                2 => Operation::Sign {
                    key: decode_pair(body)?,
                    algorithm: entry_of(&Algorithm::ALL, body.u8()?)?,
                    input: match body.u8()? {
                        0 => SignInput::Digest(body.bytes()?.to_vec()),
                        1 => SignInput::Message(body.bytes()?.to_vec()),
                        _ => return Err(Malformed),
                    },
                },
                3 => Operation::Destroy(CkaId::from_bytes(body.array()?)),
                4 => Operation::Check,
                5 => Operation::Epoch(match body.u8()? {
                    0 => Step::Read,
                    1 => Step::Create(body.mark()?),
                    2 => Step::Destroy(body.mark()?),
                    _ => return Err(Malformed),
                }),
                6 => Operation::List(listing::decode_cursor(body)?),
                7 => Operation::WrapKey {
                    key: decode_secret_key(body)?,
                    plaintext: SecretBytes::new(body.bytes()?.to_vec()),
                    aad: Opaque(body.bytes()?.to_vec()),
                },
                8 => Operation::UnwrapKey {
                    key: match body.u8()? {
                        0 => KekRef::Secret(decode_secret_key(body)?),
                        1 => KekRef::Pair(decode_pair(body)?),
                        _ => return Err(Malformed),
                    },
                    wrapped: Opaque(body.bytes()?.to_vec()),
                    aad: Opaque(body.bytes()?.to_vec()),
                },
                _ => return Err(Malformed),
            };
            Ok(Self { id, deadline_ns, operation })
        })
    }
}

fn decode_pair(body: &mut Body<'_>) -> Result<KeyRef, Malformed> {
    Ok(KeyRef { id: CkaId::from_bytes(body.array()?), spki_sha256: body.array()? })
}

fn encode_secret_key(key: &SecretKeyRef, out: &mut Vec<u8>) {
    out.put_raw(key.id.as_bytes());
    out.put_u8(key.known_answer.is_some().into());
    if let Some(answer) = &key.known_answer {
        out.put_bytes(answer.as_bytes());
    }
}

fn decode_secret_key(body: &mut Body<'_>) -> Result<SecretKeyRef, Malformed> {
    let id = CkaId::from_bytes(body.array()?);
    let known_answer = match body.flag()? {
        true => Some(KnownAnswer::from_bytes(body.bytes()?).ok_or(Malformed)?),
        false => None,
    };
    Ok(SecretKeyRef { id, known_answer })
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use kms_core::epoch::{Installation, Mark};
    use proptest::prelude::*;

    use super::*;

    fn body(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    fn requests() -> Vec<Request> {
        let id = CkaId::from_bytes([7; 16]);
        let mut operations = vec![Operation::Find(id), Operation::Destroy(id), Operation::Check];
        let mark = Mark { installation: Installation([3; 16]), value: u64::MAX, nonce: [4; 8] };
        operations.extend([Step::Read, Step::Create(mark), Step::Destroy(mark)].map(Operation::Epoch));
        let cursor = Cursor { cka_id: vec![1, 2], listed: 3 };
        operations.extend([None, Some(cursor)].map(Operation::List));
        let label = "orders/1".to_owned();
        operations.extend(SPECS.into_iter().flat_map(|spec| {
            let label = label.clone();
            USAGES.map(|usage| Operation::Generate(NewKey { id, label: label.clone(), spec, usage }))
        }));
        let answer = KnownAnswer::from_bytes(&[6; KnownAnswer::LEN]);
        for key in [None, answer].map(|known_answer| SecretKeyRef { id, known_answer }) {
            let (plaintext, aad) = (SecretBytes::new(vec![3; 32]), || Opaque(vec![4; 88]));
            operations.push(Operation::UnwrapKey {
                key: KekRef::Secret(key.clone()),
                wrapped: Opaque(vec![5; 60]),
                aad: aad(),
            });
            operations.push(Operation::WrapKey { key, plaintext, aad: aad() });
        }
        operations.push(Operation::UnwrapKey {
            key: KekRef::Pair(KeyRef { id, spki_sha256: [9; 32] }),
            wrapped: Opaque(vec![5; 256]),
            aad: Opaque(vec![]),
        });
        operations.extend(Algorithm::SIGNATURES.map(|algorithm| Operation::Sign {
            key: KeyRef { id, spki_sha256: [9; 32] },
            algorithm,
            input: SignInput::Digest(vec![1, 2, 3]),
        }));
        operations.into_iter().map(|operation| Request { id: 5, deadline_ns: u64::MAX, operation }).collect()
    }

    #[test]
    fn truncated_and_prolonged_bodies_are_refused() {
        for request in requests() {
            let whole = body(|out| request.encode(out));
            assert!((0..whole.len()).all(|cut| Request::decode(&whole[..cut]).is_err()), "{request:?}");
            assert!(Request::decode(&[&whole[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn every_request_reads_back_as_it_was_written() {
        for request in requests() {
            let bytes = body(|out| request.encode(out));
            assert!(request.secret_len_max().is_none_or(|max| bytes.len() <= max), "{request:?}");
            assert_eq!(body(|out| Request::decode(&bytes).unwrap().encode(out)), bytes, "{request:?}");
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let input = SignInput::Message(vec![0xab; 3]);
        let key = KeyRef { id: CkaId::from_bytes([7; 16]), spki_sha256: [9; 32] };
        let (plaintext, opaque) = (SecretBytes::new(vec![0xab; 3]), || Opaque(vec![0xab; 3]));
        let secret = SecretKeyRef {
            id: CkaId::from_bytes([7; 16]),
            known_answer: KnownAnswer::from_bytes(&[0xab; KnownAnswer::LEN]),
        };
        let unwrap =
            Operation::UnwrapKey { key: KekRef::Secret(secret.clone()), wrapped: opaque(), aad: opaque() };
        let text = format!(
            "{:?} {unwrap:?} {:?}",
            Operation::Sign { key, algorithm: Algorithm::Ed25519, input },
            Operation::WrapKey { key: secret, plaintext, aad: opaque() }
        );
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::decode(&bytes);
        }
    }
}
