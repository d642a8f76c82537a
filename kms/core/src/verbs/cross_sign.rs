//! Succession of the keys of bundles: the version that signs says of the next one, at its birth, that it is the next.
//!
//! Verifiers pin such a key out of band, and follow these statements from the version that they have pinned. Nobody is
//! asked in an emergency: then the version before it may be in other hands, and the same hands could say as much of a
//! key of their own. So verifiers pin anew after one. The statement is made before the row becomes live and becomes
//! part of it with the same commit: a birth that is resumed makes another, about the same successor.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    AuditLog, Clock, Error, Hsm, KeyId, Kms, Store,
    audit::Subject,
    gate::SystemWork,
    jwk::{Jwk, base64url},
    key::{Purpose, TakeOver},
    signature::{self, PublicKey},
    time::Deadline,
    verbs::sign_jwt::header,
};

/// The header's `typ`.
const TYP: &str = "kms-jwks-bundle-succession+jwt";

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    /// The key of which both are versions.
    sub: String,
    iat: i64,
    jwk: &'a Jwk,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The statement of the version that signs now about the new one, whose pair has proved itself. `None` when there
    /// is nobody to make one, or somebody who should not be asked.
    pub(super) async fn cross_sign(
        &self,
        id: &KeyId,
        number: u32,
        pair: &PublicKey,
        deadline: Deadline,
    ) -> Result<Option<Arc<str>>, Error> {
        let (entry, now) = (self.catalog.entry(id)?, self.clock.now());
        let at_once = entry.version(number)?.row.takes_over == TakeOver::AtOnce;
        if entry.key.purpose != Purpose::JwksBundle || at_once {
            return Ok(None);
        }
        let Some(by) = entry.find_primary(now).filter(|version| version.row.number < number) else {
            return Ok(None);
        };
        let algorithm = entry.key.algorithm;
        let public = by.public()?;
        let header = header(algorithm.jose_name(), &public.jwk().kid(), Some(TYP))?;
        let claims = Claims {
            iss: &self.settings.issuer,
            sub: format!("keys/{id}"),
            iat: now.as_second(),
            jwk: pair.jwk(),
        };
        let claims = serde_json::to_vec(&claims)
            .map_err(|error| Error::internal(format!("cannot write a statement: {error}")))?;
        let signing_input = format!("{}.{}", base64url(header.as_bytes()), base64url(&claims));
        let input = signature::input_of(algorithm, signing_input.as_bytes());
        let subject = Subject::of_version(id, by.row.number);
        let admission = self.gate.begin_system(SystemWork::CrossSignature, subject, now).await?;
        let signed = self.hsm.sign(&admission, public.key_ref(), algorithm, input.clone(), deadline).await;
        let signed = signed.map_err(Error::from).and_then(|signature| {
            signature.try_map(|signature| match public.verifies(&input, &signature) {
                true => Ok(signature),
                false => Err(Error::internal("a statement's signature does not verify; it is not used")),
            })
        });
        let signature = admission.settle(signed).await.inspect_err(|error| {
            tracing::warn!(
                key = %id, version = by.row.number, successor = number, %error,
                "a version could not sign that it has a successor; if its key is lost, revoke or disable it"
            );
        })?;
        Ok(Some(format!("{signing_input}.{}", base64url(&signature)).into()))
    }
}
