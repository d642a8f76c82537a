//! Worker to pool: hello, READY or a refusal, then answers.

use std::{fmt, time::Duration};

use kms_core::{
    Algorithm,
    epoch::Mark,
    hsm::{Fault, Found, Page},
};
use kms_envelope::SecretBytes;

use super::{
    Secret,
    codec::{Body, Malformed, Put, entry_of, index_of},
    listing, objects,
};

/// What came of a request.
#[derive(Debug)]
pub struct Answer {
    /// [`super::Request::id`].
    pub id: u64,
    /// Its result.
    pub result: Result<Outcome, Fault>,
}

/// A result without a fault.
pub enum Outcome {
    /// Of generate, destroy and check.
    Done,
    /// Of find.
    Found(Found),
    /// Of sign.
    Signature(Vec<u8>),
    /// Of a step of the epoch.
    Marks(Vec<Mark>),
    /// Of list.
    Page(Page),
    /// Of a wrap: IV, ciphertext and tag.
    Wrapped(Vec<u8>),
    /// Of an unwrap.
    Unwrapped(SecretBytes),
}

/// The first frame of a worker.
#[derive(Debug)]
pub struct Hello {
    /// [`super::BUILD_ID`] of the worker.
    pub build: String,
    /// Which worker it is.
    pub number: u16,
    /// The secret from its order.
    pub secret: Secret,
}

/// The worker is logged in, and may be killed from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Serial number of the token, trimmed.
    pub token_serial: String,
    /// Label of the token, trimmed.
    pub token_label: String,
    /// Manufacturer, description and version of the module.
    pub library: String,
    /// Whether a worker of this module may be killed before it is READY.
    pub may_die_starting: bool,
    /// What the token can do.
    pub algorithms: Vec<Algorithm>,
}

/// Why a worker did not become READY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What follows from it.
    pub kind: RefusalKind,
    /// For the operator: what happened and what to do.
    pub text: String,
}

/// What follows from a refused start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The PIN is wrong, locked or one step from it. Terminal: no further try without the operator.
    Pin,
    /// The configuration names something that is not there or not unique.
    Configuration,
    /// The token is away or busy: a later try may succeed.
    Passing,
    /// The token has no room for another session. The workers that run go on.
    Capacity,
    /// The link broke inside C_Login: a PIN try may be spent.
    LoginInDoubt,
}

/// What a worker may send.
#[derive(Debug)]
pub enum FromWorker {
    /// First.
    Hello(Hello),
    /// Second: C_Login is next, on the token of this serial number (trimmed), once the pool has said
    /// [`super::LOG_IN`]. An end without a word after that may have spent a PIN try.
    LoggingIn(String),
    /// Then: C_Login has succeeded. What fails from here on is not the PIN.
    LoggedIn,
    /// Third, or
    Ready(Ready),
    /// the end.
    Refused(Refusal),
    /// From then on.
    Answer(Answer),
}

/// Most marks of the epoch in an answer.
const MARKS_MAX: u32 = Mark::COUNT_MAX as u32;

impl FromWorker {
    /// Most bytes of its body, when it holds a secret.
    pub fn secret_len_max(&self) -> Option<usize> {
        match self {
            Self::Answer(Answer { result: Ok(Outcome::Unwrapped(secret)), .. }) => {
                Some(secret.expose_secret().len() + 32)
            }
            _ => None,
        }
    }

    /// Appends the body of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                out.put_u8(0);
                out.put_bytes(hello.build.as_bytes());
                out.put_u16(hello.number);
                out.put_raw(hello.secret.expose());
            }
            Self::Ready(ready) => {
                out.put_u8(1);
                out.put_bytes(ready.token_serial.as_bytes());
                out.put_bytes(ready.token_label.as_bytes());
                out.put_bytes(ready.library.as_bytes());
                out.put_u8(ready.may_die_starting.into());
                out.put_bytes(
                    &ready.algorithms.iter().map(|a| index_of(&Algorithm::ALL, a)).collect::<Vec<_>>(),
                );
            }
            Self::Refused(refusal) => {
                out.put_u8(2);
                out.put_u8(match refusal.kind {
                    RefusalKind::Pin => 0,
                    RefusalKind::Configuration => 1,
                    RefusalKind::Passing => 2,
                    RefusalKind::Capacity => 3,
                    RefusalKind::LoginInDoubt => 4,
                });
                out.put_bytes(refusal.text.as_bytes());
            }
            Self::Answer(answer) => {
                out.put_u8(3);
                out.put_u64(answer.id);
                encode_result(&answer.result, out);
            }
            Self::LoggingIn(token_serial) => {
                out.put_u8(4);
                out.put_bytes(token_serial.as_bytes());
            }
            Self::LoggedIn => out.put_u8(5),
        }
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        Body::read(body, |body| match body.u8()? {
            0 => Ok(Self::Hello(Hello {
                build: body.text()?,
                number: body.u16()?,
                secret: Secret::from_bytes(body.array()?),
            })),
            1 => Ok(Self::Ready(Ready {
                token_serial: body.text()?,
                token_label: body.text()?,
                library: body.text()?,
                may_die_starting: body.flag()?,
                algorithms: body
                    .bytes()?
                    .iter()
                    .map(|index| entry_of(&Algorithm::ALL, *index))
                    .collect::<Result<_, _>>()?,
            })),
            2 => Ok(Self::Refused(Refusal {
                kind: match body.u8()? {
                    0 => RefusalKind::Pin,
                    1 => RefusalKind::Configuration,
                    2 => RefusalKind::Passing,
                    3 => RefusalKind::Capacity,
                    4 => RefusalKind::LoginInDoubt,
                    _ => return Err(Malformed),
                },
                text: body.text()?,
            })),
            3 => Ok(Self::Answer(Answer { id: body.u64()?, result: decode_result(body)? })),
            4 => Ok(Self::LoggingIn(body.text()?)),
            5 => Ok(Self::LoggedIn),
            _ => Err(Malformed),
        })
    }
}

fn encode_result(result: &Result<Outcome, Fault>, out: &mut Vec<u8>) {
    let (tag, text) = match result {
        Ok(Outcome::Done) => return out.put_u8(0),
        Ok(Outcome::Signature(signature)) => {
            out.put_u8(1);
            return out.put_bytes(signature);
        }
        Ok(Outcome::Found(found)) => {
            out.put_u8(2);
            return objects::encode_found(found, out);
        }
        Ok(Outcome::Marks(marks)) => {
            out.put_u8(10);
            out.put_u32(u32::try_from(marks.len()).unwrap_or(u32::MAX));
            return marks.iter().for_each(|mark| out.put_mark(mark));
        }
        Ok(Outcome::Page(page)) => {
            out.put_u8(11);
            return listing::encode_page(page, out);
        }
        Ok(Outcome::Wrapped(wrapped)) => {
            out.put_u8(13);
            return out.put_bytes(wrapped);
        }
        Ok(Outcome::Unwrapped(secret)) => {
            out.put_u8(14);
            return out.put_bytes(secret.expose_secret());
        }
        Err(Fault::NotOpened) => return out.put_u8(15),
        Err(Fault::Busy { retry_after }) => {
            out.put_u8(3);
            return out.put_u64(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
        }
        Err(Fault::DeadlineExceeded) => return out.put_u8(4),
        Err(Fault::KeyNotFound) => return out.put_u8(5),
        Err(Fault::Unavailable(text)) => (6, text),
        Err(Fault::KeyMismatch(text)) => (7, text),
        Err(Fault::Unsupported(text)) => (8, text),
        Err(Fault::Failed(text)) => (9, text),
        Err(Fault::Full(text)) => (12, text),
    };
    out.put_u8(tag);
    out.put_bytes(text.as_bytes());
}

fn decode_result(body: &mut Body<'_>) -> Result<Result<Outcome, Fault>, Malformed> {
    Ok(match body.u8()? {
        0 => Ok(Outcome::Done),
        1 => Ok(Outcome::Signature(body.bytes()?.to_vec())),
        2 => Ok(Outcome::Found(objects::decode_found(body)?)),
        3 => Err(Fault::Busy { retry_after: Duration::from_millis(body.u64()?) }),
        4 => Err(Fault::DeadlineExceeded),
        5 => Err(Fault::KeyNotFound),
        6 => Err(Fault::Unavailable(body.text()?)),
        7 => Err(Fault::KeyMismatch(body.text()?)),
        8 => Err(Fault::Unsupported(body.text()?)),
        9 => Err(Fault::Failed(body.text()?)),
        10 => Ok(Outcome::Marks(body.list(MARKS_MAX, Body::mark)?)),
        11 => Ok(Outcome::Page(listing::decode_page(body)?)),
        12 => Err(Fault::Full(body.text()?)),
        13 => Ok(Outcome::Wrapped(body.bytes()?.to_vec())),
        14 => Ok(Outcome::Unwrapped(SecretBytes::new(body.bytes()?.to_vec()))),
        15 => Err(Fault::NotOpened),
        _ => return Err(Malformed),
    })
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("Done"),
            Self::Found(found) => {
                let (private, public) = (found.private.len(), found.public.len());
                write!(f, "Found({private} private, {public} public, {} secret)", found.secret.len())
            }
            Self::Marks(marks) => write!(f, "Marks({})", marks.len()),
            Self::Signature(signature) => write!(f, "Signature([{} bytes])", signature.len()),
            Self::Wrapped(wrapped) => write!(f, "Wrapped([{} bytes])", wrapped.len()),
            Self::Unwrapped(secret) => write!(f, "Unwrapped([{} bytes])", secret.expose_secret().len()),
            Self::Page(page) => write!(f, "Page({} objects)", page.objects.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::hsm::{Cursor, Half, KeyObject, Object};
    use proptest::prelude::*;

    use super::*;

    fn body(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    fn messages() -> Vec<FromWorker> {
        let object = KeyObject {
            token: true,
            private: true,
            sensitive: true,
            extractable: false,
            always_sensitive: true,
            never_extractable: true,
            local: true,
            modifiable: false,
            copyable: Some(false),
            sign: true,
            encrypt: false,
            decrypt: true,
            other_use: false,
        };
        let found = Found {
            private: vec![object, KeyObject { copyable: None, ..object }],
            public: vec![vec![1, 2]],
            secret: vec![KeyObject { encrypt: true, sign: false, ..object }],
        };
        let mark = Mark { installation: kms_core::epoch::Installation([5; 16]), value: 6, nonce: [7; 8] };
        let object = |half| Object { cka_id: vec![5; 20], label: "l\u{e9}".to_owned(), half };
        let objects =
            [Half::Private(found.private[1]), Half::Public(None), Half::Public(Some(vec![6]))].map(object);
        let objects = objects.into_iter().chain([object(Half::Secret(found.secret[0]))]).collect();
        let next = Some(Cursor { cka_id: vec![5; 20], listed: 2 });
        let results = [
            Ok(Outcome::Page(Page::default())),
            Ok(Outcome::Page(Page { objects, next })),
            Ok(Outcome::Done),
            Ok(Outcome::Signature(vec![4; 64])),
            Ok(Outcome::Found(found)),
            Ok(Outcome::Wrapped(vec![5; 60])),
            Ok(Outcome::Unwrapped(SecretBytes::new(vec![6; 32]))),
            Ok(Outcome::Marks(vec![])),
            Ok(Outcome::Marks(vec![mark; Mark::COUNT_MAX])),
            Err(Fault::Busy { retry_after: Duration::from_millis(3) }),
            Err(Fault::DeadlineExceeded),
            Err(Fault::KeyNotFound),
            Err(Fault::NotOpened),
            Err(Fault::Unavailable("a".to_owned())),
            Err(Fault::KeyMismatch("b".to_owned())),
            Err(Fault::Unsupported("c".to_owned())),
            Err(Fault::Failed("d".to_owned())),
            Err(Fault::Full("e".to_owned())),
        ];
        let mut messages: Vec<_> =
            results.into_iter().map(|result| FromWorker::Answer(Answer { id: 1, result })).collect();
        messages.extend(
            [
                RefusalKind::Pin,
                RefusalKind::Configuration,
                RefusalKind::Passing,
                RefusalKind::Capacity,
                RefusalKind::LoginInDoubt,
            ]
            .map(|kind| FromWorker::Refused(Refusal { kind, text: "why".to_owned() })),
        );
        messages.push(FromWorker::Hello(Hello {
            build: super::super::BUILD_ID.to_owned(),
            number: 3,
            secret: Secret::from_bytes([8; 32]),
        }));
        messages.push(FromWorker::LoggingIn("5eri4l".to_owned()));
        messages.push(FromWorker::LoggedIn);
        messages.push(FromWorker::Ready(Ready {
            token_serial: "s".to_owned(),
            token_label: "l".to_owned(),
            library: "m".to_owned(),
            may_die_starting: false,
            algorithms: Algorithm::ALL.to_vec(),
        }));
        messages
    }

    #[test]
    fn a_length_that_lies_is_refused_without_reserving_memory() {
        let mut bytes = vec![3];
        bytes.put_u64(1);
        bytes.put_u8(1);
        bytes.put_u32(u32::MAX);
        assert!(FromWorker::decode(&bytes).is_err());
    }

    #[test]
    fn truncated_and_prolonged_bodies_are_refused() {
        for message in messages() {
            let whole = body(|out| message.encode(out));
            assert!((0..whole.len()).all(|cut| FromWorker::decode(&whole[..cut]).is_err()), "{message:?}");
            assert!(FromWorker::decode(&[&whole[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn every_message_reads_back_as_it_was_written() {
        for message in messages() {
            let bytes = body(|out| message.encode(out));
            assert!(message.secret_len_max().is_none_or(|max| bytes.len() <= max), "{message:?}");
            assert_eq!(body(|out| FromWorker::decode(&bytes).unwrap().encode(out)), bytes, "{message:?}");
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let hello = Hello { build: String::new(), number: 1, secret: Secret::from_bytes([0xab; 32]) };
        let mut text = format!("{hello:?} {:?}", Outcome::Signature(vec![0xab; 3]));
        text.push_str(&format!("{:?}", Outcome::Wrapped(vec![0xab; 3])));
        text.push_str(&format!("{:?}", Outcome::Unwrapped(SecretBytes::new(vec![0xab; 3]))));
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = FromWorker::decode(&bytes);
        }
    }
}
