//! Sign and BatchSign. The shape of every cryptographic verb: gate in, catalog, HSM, check, gate out.

use crate::{
    Action, Admission, Algorithm, AuditLog, Caller, Clock, Error, Grant, Hsm, Key, KeyId, Kid, Kms, Store,
    Unsettled,
    catalog::{Entry, Version},
    hsm::SignInput,
    key::Purpose,
    signature,
    time::{Deadline, Timestamp},
    verbs::batch::{Item, batch, single},
};

/// Longest message in bytes that is taken whole; hash longer ones and send the digest.
pub const MESSAGE_LEN_MAX: usize = 64 * 1024;

/// What to sign, and with which key.
#[derive(Clone)]
pub struct Sign {
    /// The key.
    pub id: KeyId,
    /// The version; `None` for the one that signs now.
    pub version: Option<u32>,
    /// Message or digest.
    pub input: ToSign,
    /// How an ECDSA signature is written.
    pub encoding: Encoding,
}

/// A message, or its digest by the algorithm's own hash.
#[derive(Clone)]
pub enum ToSign {
    /// The message, at most [`MESSAGE_LEN_MAX`] bytes.
    Message(Vec<u8>),
    /// Its digest. Not for EdDSA, which hashes inside.
    Digest(Vec<u8>),
}

/// How an ECDSA signature is written. Other signatures have one form only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// DER (RFC 3279 §2.2.3), as X.509 tools and cloud KMS users know it.
    #[default]
    Der,
    /// `r ‖ s` (RFC 7518 §3.4).
    Jose,
}

/// A signature, and what made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The signature.
    pub signature: Vec<u8>,
    /// The key.
    pub key: KeyId,
    /// The version that signed.
    pub version: u32,
    /// Its kid.
    pub kid: Kid,
    /// Its algorithm.
    pub algorithm: Algorithm,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Signs a message or digest.
    pub async fn sign(&self, caller: &Caller, request: Sign, deadline: Deadline) -> Result<Signed, Error> {
        single(self.sign_one(caller, request, self.clock.now(), deadline)).await
    }

    /// Signs up to [`super::BATCH_ITEMS_MAX`] items side by side. Each has its own grant, its own record and its own
    /// outcome; the records of all become durable together.
    pub async fn batch_sign(
        &self,
        caller: &Caller,
        requests: Vec<Sign>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Signed, Error>>, Error> {
        let now = self.clock.now();
        batch(requests, |request| self.sign_one(caller, request, now, deadline)).await
    }

    async fn sign_one(
        &self,
        caller: &Caller,
        request: Sign,
        now: Timestamp,
        deadline: Deadline,
    ) -> Item<A, Signed> {
        let action = self.sign_action(&request.id);
        let mut admission = self.gate.admit(caller, action, Some(&request.id), now).await?;
        let result = self.sign_admitted(&mut admission, request, now, deadline).await;
        Ok((admission, result))
    }

    /// Bytes of the caller's own choice could be a token: with a key of tokens they are an action of their own.
    fn sign_action(&self, id: &KeyId) -> Action {
        match self.catalog.entry(id).map(|entry| entry.key.purpose) {
            Ok(Purpose::Jwt) => Action::SignRaw,
            // Whether there is such a key is the gate's business.
            Ok(Purpose::Signature | Purpose::JwksBundle | Purpose::Wrap) | Err(_) => Action::Sign,
        }
    }

    async fn sign_admitted(
        &self,
        admission: &mut Admission<A>,
        request: Sign,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Unsettled<Signed>, Error> {
        let entry = self.catalog.entry(&request.id)?;
        match entry.key.purpose {
            // It may have come since it was decided what this is.
            Purpose::Jwt if admission.action() != Action::SignRaw => return Err(Error::denied()),
            // They could be a key set.
            Purpose::JwksBundle => return Err(signs_only_bundles(&entry.key)),
            Purpose::Wrap => return Err(wraps_only_keys(&entry.key)),
            Purpose::Jwt | Purpose::Signature => {}
        }
        let version = entry.signing_version(request.version, now)?;
        admission.uses_version(version.row.number);
        let algorithm = entry.key.algorithm;
        let input = request.input.into_hsm_input(algorithm)?;
        let signature = self.sign_with(admission, &entry, version, input, deadline).await?;
        let kid = version.public()?.jwk().kid();
        signature.try_map(|signature| {
            let signature = match request.encoding {
                Encoding::Jose => signature,
                Encoding::Der => signature::jose_to_der(algorithm, signature)?,
            };
            Ok(Signed { signature, key: request.id, version: version.row.number, kid, algorithm })
        })
    }

    /// Signs in the HSM and, unless the operator has switched that off, verifies before anything is released.
    pub(super) async fn sign_with(
        &self,
        grant: &Grant,
        entry: &Entry,
        version: &Version,
        input: SignInput,
        deadline: Deadline,
    ) -> Result<Unsettled<Vec<u8>>, Error> {
        let public = version.public()?;
        let to_verify = self.settings.verify_before_release.then(|| input.clone());
        let signature = self.hsm.sign(grant, public.key_ref(), entry.key.algorithm, input, deadline).await;
        let signature = signature.inspect_err(|fault| log_fault(fault, entry, version))?;
        let Some(input) = to_verify else { return Ok(signature) };
        signature.try_map(|signature| {
            if public.verifies(&input, &signature) {
                return Ok(signature);
            }
            tracing::error!(key = %entry.key.id, version = version.row.number, "the HSM gave a wrong signature");
            Err(Error::internal("the HSM gave a signature that does not verify; it was not released"))
        })
    }
}

/// Whoever asks.
pub(super) fn signs_only_bundles(key: &Key) -> Error {
    let text = format!("keys/{} signs bundles of key sets and nothing else; use another key", key.id);
    Error::precondition("WRONG_PURPOSE", text)
}

/// Whoever asks.
pub(super) fn wraps_only_keys(key: &Key) -> Error {
    let text = format!("keys/{} wraps keys and signs nothing; use another key", key.id);
    Error::precondition("WRONG_PURPOSE", text)
}

fn log_fault(fault: &crate::hsm::Fault, entry: &Entry, version: &Version) {
    use crate::hsm::Fault::{Busy, DeadlineExceeded};
    if !matches!(fault, Busy { .. } | DeadlineExceeded) {
        tracing::warn!(key = %entry.key.id, version = version.row.number, %fault, "signing failed in the HSM");
    }
}

impl ToSign {
    /// What the token must see, after checking lengths against the algorithm.
    pub(super) fn into_hsm_input(self, algorithm: Algorithm) -> Result<SignInput, Error> {
        match (self, algorithm.hash()) {
            (Self::Message(message), _) if message.len() > MESSAGE_LEN_MAX => Err(Error::invalid(
                "message",
                format!(
                    "a message has at most {MESSAGE_LEN_MAX} bytes; hash a longer one and send its digest"
                ),
            )),
            (Self::Message(message), Some(hash)) => {
                Ok(SignInput::Digest(hash.digest(&message).as_ref().to_vec()))
            }
            (Self::Message(message), None) => Ok(SignInput::Message(message)),
            (Self::Digest(_), None) => Err(Error::invalid(
                "digest",
                format!("{algorithm} signs messages, not digests; send the message itself"),
            )),
            (Self::Digest(digest), Some(hash)) if digest.len() != hash.digest_len() => Err(Error::invalid(
                "digest",
                format!(
                    "{algorithm} needs a digest of {} bytes, this has {}",
                    hash.digest_len(),
                    digest.len()
                ),
            )),
            (Self::Digest(digest), Some(_)) => Ok(SignInput::Digest(digest)),
        }
    }
}
