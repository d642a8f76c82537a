//! GetInventory: what the token holds against what the store knows. Reads only, and confirms before it accuses.

use crate::{
    Action, AuditLog, Caller, Clock, Error, Grant, Hsm, Kms, Store, Unsettled,
    catalog::Picture,
    inventory::{Contents, Finding, Inventory, Item, State, classify, examine},
    time::Deadline,
};

impl<H: Hsm, S: Store, A: AuditLog, C: Clock> Kms<H, S, A, C> {
    /// The account of every key object in the token and of every version that should have one.
    pub async fn inventory(&self, caller: &Caller, deadline: Deadline) -> Result<Inventory, Error> {
        let admission = self.gate.admit(caller, Action::GetInventory, None, self.clock.now()).await?;
        let result = self.take_inventory(&admission, deadline).await;
        admission.settle(result.map(Unsettled::new)).await
    }

    /// One listing of the token, compared with the rows as they are after it: a row is written before its objects
    /// are made, so whatever was listed has its row by then.
    pub(super) async fn take_inventory(&self, grant: &Grant, deadline: Deadline) -> Result<Inventory, Error> {
        let (mut contents, mut after) = (Contents::default(), None);
        loop {
            let page = self.hsm.list(grant, after, deadline).await?;
            contents.add(page.objects);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // Other replicas write rows too.
        self.catch_up().await?;
        let picture = self.catalog.now();
        let mut inventory = classify(contents, &picture, &self.hsm.token_serial());
        let mut confirmed = Vec::with_capacity(inventory.items.len());
        for item in inventory.items {
            confirmed.extend(self.confirm(grant, &picture, item, deadline).await?);
        }
        inventory.items = confirmed;
        self.audits().counts = Some(inventory.counts());
        Ok(inventory)
    }

    /// The pages of a listing are read one after another, and births and destructions go on meanwhile: what looks
    /// wrong is looked at once more, by itself. `None` when there is nothing to tell any more.
    async fn confirm(
        &self,
        grant: &Grant,
        picture: &Picture,
        mut item: Item,
        deadline: Deadline,
    ) -> Result<Option<Item>, Error> {
        let Some((id, (key, number))) = item.id().zip(item.version.clone()) else { return Ok(Some(item)) };
        if item.finding.is_none() && item.state != State::Orphan {
            return Ok(Some(item));
        }
        let found = self.hsm.find(grant, id, deadline).await?;
        (item.private, item.public, item.secret) =
            (found.private.len(), found.public.len(), found.secret.len());
        if item.state == State::Orphan {
            let is_there = item.private + item.public + item.secret > 0;
            return Ok(is_there.then_some(item));
        }
        let entry = picture.keys.get(&key);
        let born = entry.and_then(|entry| entry.version(number).ok()?.row.born.as_ref());
        item.finding = entry
            .zip(born)
            .and_then(|(entry, born)| examine(entry.key.algorithm.usage(), &born.material, &found));
        item.state = item.finding.map_or(State::Live, Finding::state);
        Ok(Some(item))
    }
}
