//! Verify: in software, with the stored public key; the HSM is not asked.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Hsm, Key, KeyId, KeyVersion, Kms, Store, Unsettled,
    error::Kind,
    key::later,
    signature,
    time::Timestamp,
    verbs::{Encoding, ToSign},
};

/// A signature to be checked.
#[derive(Clone)]
pub struct Verify {
    /// The key.
    pub id: KeyId,
    /// The version; `None` tries every version that may verify.
    pub version: Option<u32>,
    /// Message or digest.
    pub input: ToSign,
    /// The signature.
    pub signature: Vec<u8>,
    /// How an ECDSA signature is written.
    pub encoding: Encoding,
}

/// What came of it. A signature that is not valid is an answer, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Whether the signature is valid.
    pub valid: bool,
    /// The version that it verifies under.
    pub version: Option<u32>,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Verifies a signature.
    pub async fn verify(&self, caller: &Caller, request: Verify) -> Result<Verified, Error> {
        let now = self.clock.now();
        let mut admission = self.gate.admit(caller, Action::Verify, Some(&request.id), now).await?;
        let result = self.check_signature(&request, now);
        if let Ok(Verified { version: Some(number), .. }) = result {
            admission.uses_version(number);
        }
        admission.settle(result.map(Unsettled::new)).await
    }

    fn check_signature(&self, request: &Verify, now: Timestamp) -> Result<Verified, Error> {
        let entry = self.catalog.entry(&request.id)?;
        let algorithm = entry.key.algorithm;
        let input = request.input.clone().into_hsm_input(algorithm)?;
        let candidates = match request.version {
            Some(number) => vec![entry.version(number)?],
            None => entry.versions.iter().rev().collect(),
        };
        // A replica whose clock is ahead may sign with a version already that is not yet active here.
        let ahead = later(now, Key::CLOCKS_APART);
        let may_process = |row: &KeyVersion| [now, ahead].iter().any(|at| row.state(*at).may_process());
        let usable: Vec<_> = candidates.iter().filter(|version| may_process(&version.row)).collect();
        if usable.is_empty() {
            let states: Vec<_> =
                candidates.iter().map(|v| format!("{} is {}", v.row.number, v.row.state(now))).collect();
            return Err(Error::new(
                Kind::FailedPrecondition,
                "NO_VERIFYING_VERSION",
                format!("keys/{} has no version that may verify: {}", request.id, states.join(", ")),
            ));
        }
        let signature = match request.encoding {
            Encoding::Jose => Some(request.signature.clone()),
            Encoding::Der => signature::der_to_jose(algorithm, &request.signature),
        };
        let version = signature.and_then(|signature| {
            usable.iter().find(|version| {
                version.public.as_ref().is_some_and(|public| public.verifies(&input, &signature))
            })
        });
        Ok(Verified { valid: version.is_some(), version: version.map(|version| version.row.number) })
    }
}
