//! A KMS in memory: it makes and remembers data keys, counts what it is asked, and fails or waits when told to.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use kms_client::{
    Error,
    envelope::{EncryptionContext, Generated, Kms, Primary, Purpose, SecretBytes, WrapHeader, WrappedKey},
};
use kms_envelope::{DataKeyId, WrapAlgorithm};
use tokio::sync::Semaphore;
use tonic::Status;

pub(crate) const KEY: &str = "keys/orders";
pub(crate) const KEY_UID: [u8; 16] = [7; 16];

#[derive(Clone)]
pub(crate) struct Memory(Arc<State>);

pub(crate) struct State {
    /// By the wrapped key: the data key.
    held: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    next: AtomicU32,
    /// 0: none wraps now.
    pub(crate) version: AtomicU32,
    pub(crate) generated: AtomicU64,
    pub(crate) unwrapped: AtomicU64,
    /// Calls, and the wrapped keys in them.
    pub(crate) rewraps: AtomicU64,
    pub(crate) rewrapped: AtomicU64,
    pub(crate) fails: AtomicBool,
    /// What becomes of the next calls, before that is asked.
    pub(crate) next_answers: Mutex<VecDeque<Result<(), Status>>>,
    /// To which key it moves.
    pub(crate) moves_to: Mutex<[u8; 16]>,
    /// Each answer takes a permit.
    pub(crate) answers: Semaphore,
}

impl std::ops::Deref for Memory {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            held: Mutex::default(),
            next: AtomicU32::new(0),
            version: AtomicU32::new(1),
            generated: AtomicU64::new(0),
            unwrapped: AtomicU64::new(0),
            rewraps: AtomicU64::new(0),
            rewrapped: AtomicU64::new(0),
            fails: AtomicBool::new(false),
            next_answers: Mutex::default(),
            moves_to: Mutex::new(KEY_UID),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
        }))
    }

    /// The same data key as `wrapped`'s, wrapped by the version that wraps now, or for another key.
    pub(crate) fn wrap_again(&self, wrapped: &WrappedKey, key_uid: [u8; 16]) -> Option<WrappedKey> {
        let plaintext = self.held.lock().expect("unpoisoned").get(&wrapped.to_bytes())?.clone();
        Some(self.wrap(plaintext, WrapHeader { key_uid, ..*wrapped.header() }))
    }

    fn wrap(&self, plaintext: Vec<u8>, header: WrapHeader) -> WrappedKey {
        let key_version = NonZeroU32::new(self.version.load(Relaxed)).expect("versions begin with 1");
        let mut bytes = vec![0; 60];
        bytes[..4].copy_from_slice(&self.next.fetch_add(1, Relaxed).to_be_bytes());
        let wrapped = WrappedKey::new(WrapHeader { key_version, ..header }, bytes).expect("60 bytes fit");
        self.held.lock().expect("unpoisoned").insert(wrapped.to_bytes(), plaintext);
        wrapped
    }

    async fn answer(&self, key: &str) -> Result<(), Error> {
        assert_eq!(key, KEY);
        self.answers.acquire().await.expect("never closed").forget();
        if let Some(answer) = self.next_answers.lock().expect("unpoisoned").pop_front() {
            return answer.map_err(Error::from);
        }
        match self.fails.load(Relaxed) {
            false => Ok(()),
            true => Err(Status::permission_denied("no").into()),
        }
    }
}

impl Kms for Memory {
    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Generated, Error> {
        self.generated.fetch_add(1, Relaxed);
        self.answer(key).await?;
        let number = self.next.fetch_add(1, Relaxed).to_be_bytes();
        let plaintext = number.repeat(8);
        let header = WrapHeader {
            algorithm: WrapAlgorithm::A256GcmKw,
            purpose: Purpose::Native,
            key_uid: KEY_UID,
            key_version: NonZeroU32::MIN,
            data_key_id: DataKeyId(plaintext[..16].try_into().expect("16 bytes")),
            context_digest: context.digest(),
        };
        let wrapped_key = self.wrap(plaintext.clone(), header).to_bytes();
        Ok(Generated { plaintext: SecretBytes::new(plaintext), wrapped_key })
    }

    async fn unwrap_key(
        &self,
        key: &str,
        wrapped: &[u8],
        _: &EncryptionContext,
    ) -> Result<SecretBytes, Error> {
        self.unwrapped.fetch_add(1, Relaxed);
        self.answer(key).await?;
        let held = self.held.lock().expect("unpoisoned");
        held.get(wrapped).cloned().map(SecretBytes::new).ok_or_else(|| Status::not_found("lost").into())
    }

    async fn rewrap_keys(
        &self,
        key: &str,
        wrapped: Vec<Vec<u8>>,
    ) -> Result<Vec<Result<Vec<u8>, Error>>, Error> {
        self.rewraps.fetch_add(1, Relaxed);
        self.rewrapped.fetch_add(wrapped.len() as u64, Relaxed);
        self.answer(key).await?;
        let key_uid = *self.moves_to.lock().expect("unpoisoned");
        let moved = |wrapped: &Vec<u8>| {
            let wrapped = WrappedKey::parse(wrapped).expect("it is one");
            let moved = self.wrap_again(&wrapped, key_uid).map(|moved| moved.to_bytes());
            moved.ok_or_else(|| Status::not_found("lost").into())
        };
        Ok(wrapped.iter().map(moved).collect())
    }

    async fn key_uid(&self, key: &str) -> Result<[u8; 16], Error> {
        self.answer(key).await?;
        Ok(KEY_UID)
    }

    async fn primary(&self, key: &str) -> Result<Primary, Error> {
        self.answer(key).await?;
        match self.version.load(Relaxed) {
            0 => Err(Status::failed_precondition("none wraps now").into()),
            version => Ok(Primary { key_uid: KEY_UID, version }),
        }
    }
}
