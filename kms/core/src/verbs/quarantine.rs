//! QuarantineObject: an object in the token that no row needs is put on record, so that it raises no alarm any more
//! and no birth ever adopts it. The token is not touched: deleting is done by hand, with the vendor's tool.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Grant, Hsm, Kms, Store, Unsettled,
    audit::Subject,
    hsm::CKA_ID_LEN_MAX,
    inventory::{Item, State},
    store::{QuarantinedObject, Transaction, Write},
    time::Deadline,
};

/// Longest note in bytes.
pub const NOTE_LEN_MAX: usize = 1024;

/// An object to be put on record.
#[derive(Debug, Clone)]
pub struct Quarantine {
    /// Its CKA_ID, 1 to [`CKA_ID_LEN_MAX`] bytes.
    pub cka_id: Vec<u8>,
    /// Why, for whoever finds it later; 1 to [`NOTE_LEN_MAX`] bytes.
    pub note: String,
}

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// Quarantines an orphan or a foreign object. Doing it again changes nothing. Run it detached.
    pub async fn quarantine(
        &self,
        caller: &Caller,
        request: Quarantine,
        deadline: Deadline,
    ) -> Result<Item, Error> {
        let (subject, now) = (Subject::of_objects(&request.cka_id), self.clock.now());
        let admission = self.gate.begin_about(caller, Action::QuarantineObject, subject, now).await?;
        let result = self.quarantine_admitted(&admission, caller, request, deadline).await;
        let result = self.in_effect(result).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    async fn quarantine_admitted(
        &self,
        grant: &Grant,
        caller: &Caller,
        request: Quarantine,
        deadline: Deadline,
    ) -> Result<Item, Error> {
        check(&request)?;
        let mut inventory = self.take_inventory(grant, deadline).await?;
        let item = inventory.items.iter_mut().find(|item| item.cka_id == request.cka_id);
        let item = item.ok_or_else(|| Error::not_found("an object of this CKA_ID in the token"))?;
        match (item.state, &item.version) {
            (State::Orphan | State::Foreign, _) => {}
            (State::Quarantined, _) => return Ok(item.clone()),
            (state, version) => return Err(in_use(state, version.as_ref())),
        }
        let record = QuarantinedObject {
            token_serial: self.hsm.token_serial(),
            cka_id: request.cka_id,
            note: request.note,
            by: caller.name().to_owned(),
            at: self.clock.now(),
        };
        let writes = vec![Write::Quarantine(record.clone())];
        self.commit(Transaction::new("quarantine an object", writes)).await?;
        (item.state, item.quarantine) = (State::Quarantined, Some(record));
        let item = item.clone();
        self.audits().counts = Some(inventory.counts());
        Ok(item)
    }
}

fn check(request: &Quarantine) -> Result<(), Error> {
    if request.cka_id.is_empty() || request.cka_id.len() > CKA_ID_LEN_MAX {
        let text =
            format!("a CKA_ID has 1 to {CKA_ID_LEN_MAX} bytes; an object without one cannot be quarantined");
        return Err(Error::invalid("cka_id", text));
    }
    if request.note.trim().is_empty() || request.note.len() > NOTE_LEN_MAX {
        let text =
            format!("a note of 1 to {NOTE_LEN_MAX} bytes is required; say why the object is left alone");
        return Err(Error::invalid("note", text));
    }
    Ok(())
}

fn in_use(state: State, version: Option<&(crate::KeyId, u32)>) -> Error {
    let version =
        version.map_or_else(String::new, |(key, number)| format!(" of keys/{key}/versions/{number}"));
    Error::precondition(
        "OBJECT_IN_USE",
        format!(
            "this is the CKA_ID{version}, which is {state}; a version is taken out of use by `kms keys disable`, \
             not by quarantine"
        ),
    )
}
