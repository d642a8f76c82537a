//! Limits at the gate: what policy allows may still come too often.

use std::sync::Arc;

use super::{Admission, Gate};
use crate::{
    AuditLog, Error,
    class::ClassName,
    limits::{Limits, Refused, Use},
};

impl<A: AuditLog> Gate<A> {
    /// The same, within `limits`.
    pub(crate) fn limited_by(self, limits: Arc<Limits>) -> Self {
        Self { limits: Some(limits), ..self }
    }

    /// Lets through what fits into its limits. A refusal is a denial on record, unless it came in a flood: those are counted.
    /// `class` is that of the key which it is about.
    pub(super) async fn unless_limited(
        &self,
        mut admission: Admission<A>,
        class: Option<ClassName>,
    ) -> Result<Admission<A>, Error> {
        let grant = &admission.grant;
        let call = Use { caller: &grant.caller, key: grant.subject.key.as_ref(), class, lane: grant.lane };
        match self.limits.as_ref().map_or(Ok(()), |limits| limits.check(&call)) {
            Ok(()) => Ok(admission),
            Err(refused) if refused.is_recorded => admission.deny(Refused::REASON, refused.into()).await,
            Err(refused) => {
                admission.slot = None;
                Err(refused.into())
            }
        }
    }
}
