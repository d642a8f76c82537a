//! Pool to worker: one request per operation.

use kms_core::{
    Algorithm,
    algorithm::{Curve, KeySpec, Modulus},
    epoch::Step,
    hsm::{CkaId, Cursor, KeyRef, NewKeyPair, SignInput},
};

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
    /// Make a key pair.
    Generate(NewKeyPair),
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
    /// Destroy a pair.
    Destroy(CkaId),
    /// A step of the epoch.
    Epoch(Step),
    /// The canary.
    Check,
    /// Read one page of what is there, from this place on.
    List(Option<Cursor>),
}

impl Operation {
    /// Whether it may be made again when nobody knows whether it was made: it leaves nothing behind, or looks first.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Find(_) | Self::Sign { .. } | Self::Check | Self::Epoch(_) | Self::List(_) => true,
            Self::Generate(_) | Self::Destroy(_) => false,
        }
    }
}

const SPECS: [KeySpec; 7] = [
    KeySpec::Ec(Curve::P256),
    KeySpec::Ec(Curve::P384),
    KeySpec::Ec(Curve::P521),
    KeySpec::Rsa(Modulus::Bits2048),
    KeySpec::Rsa(Modulus::Bits3072),
    KeySpec::Rsa(Modulus::Bits4096),
    KeySpec::Ed25519,
];

impl Request {
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
        }
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| {
            let (id, deadline_ns) = (body.u64()?, body.u64()?);
            let operation = match body.u8()? {
                0 => Operation::Generate(NewKeyPair {
                    id: CkaId::from_bytes(body.array()?),
                    label: body.text()?,
                    spec: entry_of(&SPECS, body.u8()?)?,
                }),
                1 => Operation::Find(CkaId::from_bytes(body.array()?)),
                2 => Operation::Sign {
                    key: KeyRef { id: CkaId::from_bytes(body.array()?), spki_sha256: body.array()? },
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
                _ => return Err(Malformed),
            };
            Ok(Self { id, deadline_ns, operation })
        })
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
        operations.extend(
            SPECS.map(|spec| Operation::Generate(NewKeyPair { id, label: "orders/1".to_owned(), spec })),
        );
        operations.extend(Algorithm::ALL.map(|algorithm| Operation::Sign {
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
            assert_eq!(body(|out| Request::decode(&bytes).unwrap().encode(out)), bytes, "{request:?}");
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let input = SignInput::Message(vec![0xab; 3]);
        let key = KeyRef { id: CkaId::from_bytes([7; 16]), spki_sha256: [9; 32] };
        let text = format!("{:?}", Operation::Sign { key, algorithm: Algorithm::Ed25519, input });
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::decode(&bytes);
        }
    }
}
