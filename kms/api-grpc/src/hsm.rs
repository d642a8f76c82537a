//! `kms.v1.HsmService`: what the token holds, against what the store knows, and what an administrator decides about
//! it.

use kms_core::{
    AuditLog, Clock, Error, Hsm, Store,
    hsm::hex,
    inventory::{Inventory, Item, State},
    verbs::Quarantine,
};
use kms_proto::v1::{self, hsm_object::State as WireState};
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, Door, Kms},
    name, page,
    time::timestamp,
};

/// The service. Its requests must carry a [`kms_core::Caller`].
pub struct HsmService<H, S, A, C>(pub(crate) Door<H, S, A, C>);

#[tonic::async_trait]
impl<H: Hsm, S: Store, A: AuditLog, C: Clock> v1::hsm_service_server::HsmService for HsmService<H, S, A, C> {
    async fn accept_older_store(
        &self,
        request: Request<v1::AcceptOlderStoreRequest>,
    ) -> Result<Response<v1::AcceptOlderStoreResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::AcceptOlderStoreRequest| async move {
            let epoch = kms.accept_older_store(&call.caller, &request.confirm, call.deadline).await?;
            Ok(v1::AcceptOlderStoreResponse { epoch })
        };
        self.0.run_detached(request, verb).await
    }

    async fn get_inventory(
        &self,
        request: Request<v1::GetInventoryRequest>,
    ) -> Result<Response<v1::GetInventoryResponse>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::GetInventoryRequest| async move {
            let wanted = parse_state(request.state)?;
            let filter = wanted.map_or_else(String::new, |state| state.to_string());
            let list = ["GetInventory", filter.as_str()];
            let len = page::len(request.page_size)?;
            // CKA_IDs sort as their hexadecimal digits do; the empty one comes first.
            let after = page::start(&request.page_token, list)?;
            let inventory = kms.inventory(&call.caller, call.deadline).await?;
            let counts = counts(&inventory);
            let is_wanted = |item: &Item| wanted.is_none_or(|state| item.state == state);
            let items = inventory.items.into_iter().filter(is_wanted).collect();
            let is_after = |item: &Item| after.as_ref().is_none_or(|last| hex(&item.cka_id) > *last);
            let (items, next_page_token) = page::cut(items, len, list, is_after, |item| hex(&item.cka_id));
            let objects = items.into_iter().map(object).collect();
            Ok(v1::GetInventoryResponse { objects, next_page_token, counts })
        };
        self.0.run(request, verb).await
    }

    async fn quarantine_object(
        &self,
        request: Request<v1::QuarantineObjectRequest>,
    ) -> Result<Response<v1::HsmObject>, Status> {
        let verb = |kms: Kms<H, S, A, C>, call: Call, request: v1::QuarantineObjectRequest| async move {
            let v1::QuarantineObjectRequest { cka_id, note } = request;
            kms.quarantine(&call.caller, Quarantine { cka_id, note }, call.deadline).await.map(object)
        };
        self.0.run_detached(request, verb).await
    }
}

fn counts(inventory: &Inventory) -> Vec<v1::HsmObjectCount> {
    let counts = inventory.counts();
    counts.iter().map(|(state, count)| v1::HsmObjectCount { state: wire(state).into(), count }).collect()
}

fn object(item: Item) -> v1::HsmObject {
    let len = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let quarantine_time = item.quarantine.as_ref().map(|record| timestamp(record.at));
    let (note, by) = item.quarantine.map(|record| (record.note, record.by)).unwrap_or_default();
    v1::HsmObject {
        state: wire(item.state).into(),
        cka_id: item.cka_id,
        label: item.label,
        private_objects: len(item.private),
        public_objects: len(item.public),
        key_version: item.version.map(|(key, number)| name::of_version(&key, number)).unwrap_or_default(),
        finding: item.finding.map(|finding| finding.to_string()).unwrap_or_default(),
        quarantine_note: note,
        quarantined_by: by,
        quarantine_time,
    }
}

fn parse_state(state: i32) -> Result<Option<State>, Error> {
    match WireState::try_from(state) {
        Ok(WireState::Unspecified) => Ok(None),
        Ok(known) => Ok(State::ALL.into_iter().find(|state| wire(*state) == known)),
        Err(_) => Err(Error::invalid("state", "this is no state of kms.v1.HsmObject")),
    }
}

fn wire(state: State) -> WireState {
    match state {
        State::Live => WireState::Live,
        State::Resuming => WireState::Resuming,
        State::Orphan => WireState::Orphan,
        State::Dangling => WireState::Dangling,
        State::Deviating => WireState::Deviating,
        State::Foreign => WireState::Foreign,
        State::Quarantined => WireState::Quarantined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_state_is_refused_and_every_known_one_is_taken() {
        assert_eq!(parse_state(99).expect_err("unknown").field(), Some("state"));
        assert_eq!(parse_state(0), Ok(None));
        for state in State::ALL {
            assert_eq!(parse_state(wire(state).into()), Ok(Some(state)));
        }
    }
}
