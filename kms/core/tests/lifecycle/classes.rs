//! Classes, and the periods that keys have from them.

use super::*;

#[test]
fn a_key_has_the_periods_of_its_class_where_it_has_none_of_its_own() {
    block_on(async {
        let own = AskedPeriods { publish_lead: Some(HOUR * 2), ..AskedPeriods::default() };
        let (_, kms) = world_with(CreateKey { class: ClassName::Session, periods: own, ..new("k") }).await;
        let key = || async { kms.get_key(&administrator(), &id("k")).await.expect("there").key };
        let class = KeyClass::built_in(ClassName::Session).periods;
        let periods = key().await.periods();
        assert_eq!((periods.rotation_period, periods.publish_lead), (class.rotation_period, HOUR * 2));
        assert_eq!(
            key().await.inherited.names().collect::<Vec<_>>(),
            ["rotation_period", "max_token_ttl", "overlap", "destroy_after"]
        );

        let periods = PeriodChanges {
            publish_lead: Some(Some(HOUR * 3)),
            rotation_period: Some(Some(DAY * 2)),
            ..PeriodChanges::default()
        };
        let change = UpdateKeyClass { name: ClassName::Session, periods, approvals: None, etag: Some(0) };
        let changed = kms.update_key_class(&administrator(), change).await.expect("changed");
        assert_eq!((changed.revision, changed.periods.publish_lead), (1, HOUR * 3));
        assert_eq!(key().await.rotation_period, Some(DAY * 2), "the class's");
        assert_eq!(key().await.publish_lead, HOUR * 2, "its own");
        assert_eq!(reason(kms.update_key_class(&administrator(), change).await), "ETAG_MISMATCH");

        // Given back, and moved to another class.
        let periods = PeriodChanges { publish_lead: Some(None), ..PeriodChanges::default() };
        let update = UpdateKey { periods, ..UpdateKey::new(id("k")) };
        assert_eq!(
            kms.update_key(&administrator(), update).await.expect("updated").key.publish_lead,
            HOUR * 3
        );
        let update = UpdateKey { class: Some(ClassName::Api), ..UpdateKey::new(id("k")) };
        let moved = kms.update_key(&administrator(), update).await.expect("updated").key;
        assert_eq!(moved.periods(), KeyClass::built_in(ClassName::Api).periods);
    });
}

#[test]
fn a_class_that_does_not_fit_one_of_its_keys_changes_none() {
    block_on(async {
        let own = AskedPeriods { publish_lead: Some(HOUR * 10), ..AskedPeriods::default() };
        let (_, kms) = world_with(CreateKey { class: ClassName::Session, periods: own, ..new("k") }).await;
        let other = CreateKey { class: ClassName::Session, ..new("other") };
        kms.create_key(&administrator(), other, soon()).await.expect("created");
        let periods = PeriodChanges { rotation_period: Some(Some(HOUR * 15)), ..PeriodChanges::default() };
        let change = UpdateKeyClass { name: ClassName::Session, periods, approvals: None, etag: None };
        let error = kms.update_key_class(&administrator(), change).await.expect_err("10 h + 12 h > 15 h");
        assert_eq!(error.reason(), "CLASS_DOES_NOT_FIT");
        assert!(error.to_string().contains("keys/k"), "{error}");
        let other = kms.get_key(&administrator(), &id("other")).await.expect("there").key;
        assert_eq!(other.rotation_period, Some(DAY));
    });
}

#[test]
fn a_longer_token_life_in_the_class_extends_the_withdrawal_of_versions_that_stand_in_the_jwks() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        let withdrawn = || async {
            let versions = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed");
            versions[0].row.born.as_ref().expect("born").timeline.withdrawn_at.expect("retired")
        };
        let before = withdrawn().await;
        let periods = PeriodChanges { max_token_ttl: Some(Some(DAY)), ..PeriodChanges::default() };
        let change = UpdateKeyClass { name: ClassName::JwtSigning, periods, approvals: None, etag: None };
        kms.update_key_class(&administrator(), change).await.expect("changed");
        assert_eq!(withdrawn().await, before + (DAY - HOUR));
        // Tokens of a day are out there when the class goes back to an hour.
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        let back = UpdateKeyClass {
            periods: PeriodChanges { max_token_ttl: Some(None), ..PeriodChanges::default() },
            ..change
        };
        kms.update_key_class(&administrator(), back).await.expect("changed");
        world.clock.advance(DAY - HOUR);
        assert_eq!(published(&kms), 3);
    });
}

#[test]
fn a_key_that_missed_a_change_of_its_class_follows_it_by_itself() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let key = || async { kms.get_key(&administrator(), &id("k")).await.expect("there").key };
        assert_eq!(kms.run_due(soon()).await, 0, "it has them");
        // As a server leaves it that did not know of the change yet.
        let stale = key().await;
        let stale = Key { max_token_ttl: DAY, revision: stale.revision + 1, ..stale };
        let transaction = Transaction::new("a stale write", vec![Write::UpdateKey(stale)]);
        world.store.commit(transaction).await.expect("written");
        assert_eq!((kms.run_due(soon()).await, key().await.max_token_ttl), (1, HOUR));
        assert!(key().await.tokens_until.is_some(), "tokens of a day may be out there");
        assert_eq!(kms.run_due(soon()).await, 0);
    });
}
