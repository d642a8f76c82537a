//! A version that wraps goes only when nothing lives on it any more, by everybody's word.

use kms_core::{
    fakes::with_consent,
    verbs::{Confirmation, ReportUsage},
};

use super::*;

const NAME: &str = "keys/k/versions/1";
const SURE: Confirmation<'_> =
    Confirmation { name: NAME, attestation: "no backup has one: looked at by ops, 2027-01-15" };

async fn report(kms: &FakeKms, consumer: &str, envelopes: &[(u32, u64)]) -> Result<(), Error> {
    let envelopes: BTreeMap<_, _> = envelopes.iter().copied().collect();
    let report = ReportUsage { id: id("k"), consumer: id(consumer), envelopes };
    kms.report_usage(&as_role(Role::User), report).await.map(drop)
}

async fn destroy(kms: &FakeKms, confirmation: Confirmation<'_>) -> Result<(), Error> {
    with_consent(kms, kms.destroy_key_version(&administrator(), change(1), confirmation).await).await
}

/// Refused, and the message has that.
async fn is_kept_for(kms: &FakeKms, why: &str) {
    let refused = destroy(kms, SURE).await.expect_err(why);
    assert_eq!(refused.reason(), "VERSION_IN_USE", "{refused}");
    assert!(refused.to_string().contains(why), "{why}: {refused}");
}

#[test]
fn a_version_is_kept_until_consumers_use_and_attestation_let_it_go() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        report(&kms, "orders", &[(1, 3)]).await.expect("reported");
        report(&kms, "billing", &[]).await.expect("reported");
        is_kept_for(&kms, "it wraps").await;
        kms.disable_key_version(&administrator(), change(1)).await.expect("disabled");
        is_kept_for(&kms, "it wraps, or may wrap again").await;
        kms.enable_key_version(&administrator(), change(1), soon()).await.expect("enabled");

        rotate(&world, &kms).await;
        is_kept_for(&kms, "orders reported 3 envelopes").await;
        is_kept_for(&kms, "billing has not reported since").await;
        world.clock.advance(DAY);
        unwrap(&kms, "k", &wrapped, &none).await.expect("opened");
        for consumer in ["orders", "billing"] {
            report(&kms, consumer, &[(2, 3)]).await.expect("reported");
        }
        is_kept_for(&kms, "it unwrapped at").await;
        world.clock.advance(DAY * 29);
        is_kept_for(&kms, "it unwrapped at").await;
        world.clock.advance(DAY);

        for attestation in ["", "  ", "two\nlines"] {
            let refused =
                destroy(&kms, Confirmation { attestation, ..SURE }).await.expect_err("nobody looked");
            assert_eq!(refused.field(), Some("attestation"), "{attestation:?}");
        }
        destroy(&kms, SURE).await.expect("scheduled");
        let said = world.log.events().iter().any(|event| event.target.as_deref() == Some(SURE.attestation));
        assert!(said, "the attestation stands in the audit log");
        assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("VERSION_NOT_IN_USE"));
        let cka_id = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed")[0].row.cka_id;
        assert!(world.hsm.ids().contains(&cka_id));
        world.clock.advance(DAY * 31);
        kms.run_due(soon()).await;
        assert_eq!(states(&kms).await[..2], [KeyState::Destroyed, KeyState::Active]);
        assert!(!world.hsm.ids().contains(&cka_id), "it is gone from the token");
        let refused = unwrap(&kms, "k", &wrapped, &none).await.expect_err("gone");
        assert!(refused.to_string().contains("destroyed"), "{refused}");
    });
}

#[test]
fn a_use_that_is_not_written_yet_counts_and_is_written_in_time() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        rotate(&world, &kms).await;
        world.clock.advance(DAY * 31);
        unwrap(&kms, "k", &wrapped, &none).await.expect("opened");
        is_kept_for(&kms, "it unwrapped at").await;
        kms.write_uses().await;
        let again = world.open(Settings { allow_destroy: true, ..Settings::default() }).await.expect("opens");
        is_kept_for(&again, "it unwrapped at").await;
        let usage = again.key_usage(&administrator(), &id("k")).await.expect("usage");
        let used = usage.versions[0].used.clone().expect("used");
        assert!(used.unwrapped_at > used.wrapped_at && used.wrapped_at.is_some(), "{used:?}");
    });
}

#[test]
fn a_revoked_version_is_kept_for_its_consumers_too() {
    block_on(async {
        let (world, kms) = a_world().await;
        report(&kms, "orders", &[(1, 1)]).await.expect("reported");
        revoke(&kms, 1).await;
        world.clock.advance(DAY * 31);
        is_kept_for(&kms, "orders reported 1 envelopes").await;
        kms.remove_consumer(&administrator(), &id("k"), &id("orders")).await.expect("removed");
        destroy(&kms, SURE).await.expect("scheduled");
    });
}

#[test]
fn reports_are_bounded_and_name_what_is_there() {
    block_on(async {
        let (_, kms) = a_world().await;
        assert_eq!(
            report(&kms, "orders", &[(2, 1)]).await.expect_err("no version 2").field(),
            Some("envelopes")
        );
        for number in 0..256 {
            report(&kms, &format!("c{number}"), &[(1, 1)]).await.expect("reported");
        }
        assert_eq!(reason(report(&kms, "one-more", &[]).await), Some("TOO_MANY_CONSUMERS"));
        report(&kms, "c7", &[]).await.expect("a known one reports on");
        let usage = kms.key_usage(&administrator(), &id("k")).await.expect("usage");
        assert_eq!((usage.consumers.len(), usage.versions[0].envelopes), (256, 255));
        let removed = kms.remove_consumer(&administrator(), &id("k"), &id("nobody")).await;
        assert_eq!(reason(removed), Some("NOT_FOUND"));
        let by_a_user = kms.remove_consumer(&as_role(Role::User), &id("k"), &id("c1")).await;
        assert_eq!(reason(by_a_user), Some("PERMISSION_DENIED"));
    });
}

/// Scheduled, with nobody left who needs it, and due.
async fn scheduled() -> (World, FakeKms) {
    let (world, kms) = a_world().await;
    rotate(&world, &kms).await;
    world.clock.advance(DAY * 31);
    destroy(&kms, SURE).await.expect("scheduled");
    (world, kms)
}

#[test]
fn a_destruction_that_is_due_waits_for_a_consumer_that_came_meanwhile() {
    block_on(async {
        let (world, kms) = scheduled().await;
        world.clock.advance(DAY);
        report(&kms, "nobody-knew", &[(1, 10_000)]).await.expect("reported");
        world.clock.advance(DAY * 30);
        kms.run_due(soon()).await;
        assert_eq!(states(&kms).await[0], KeyState::Suspended, "it is held back");
        report(&kms, "nobody-knew", &[(2, 10_000)]).await.expect("reported");
        kms.run_due(soon()).await;
        assert_eq!(states(&kms).await[0], KeyState::Destroyed);
    });
}

#[test]
fn a_destruction_that_is_due_waits_for_who_still_asks_for_the_version() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        rotate(&world, &kms).await;
        world.clock.advance(DAY * 31);
        destroy(&kms, SURE).await.expect("scheduled");
        world.clock.advance(DAY * 20);
        assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("VERSION_NOT_IN_USE"));
        world.clock.advance(DAY * 10);
        kms.run_due(soon()).await;
        assert_eq!(states(&kms).await[0], KeyState::Suspended, "somebody holds what it wrapped");
        world.clock.advance(DAY * 20);
        kms.run_due(soon()).await;
        assert_eq!(states(&kms).await[0], KeyState::Destroyed);
    });
}

#[test]
fn nobody_speaks_for_the_consumer_of_another() {
    block_on(async {
        let (_, kms) = a_world().await;
        report(&kms, "billing", &[(1, 5_000)]).await.expect("reported");
        let report_as = async |caller: &Caller| {
            let report = ReportUsage { id: id("k"), consumer: id("billing"), envelopes: BTreeMap::new() };
            kms.report_usage(caller, report).await.map(drop)
        };
        let thief = Caller::new("access-token:thief", Role::User, KeyScope::All);
        assert_eq!(reason(report_as(&thief).await), Some("CONSUMER_OF_ANOTHER"));
        report_as(&administrator()).await.expect("an administrator may");
        report(&kms, "billing", &[(1, 1)]).await.expect("and its own caller goes on");
        kms.remove_consumer(&administrator(), &id("k"), &id("billing")).await.expect("removed");
        report_as(&thief).await.expect("now the name is free");
    });
}

#[test]
fn of_a_report_and_a_destruction_at_once_on_two_servers_the_report_counts() {
    block_on(async {
        let (world, one) = a_world().await;
        rotate(&world, &one).await;
        world.clock.advance(DAY * 31);
        let beside = world.beside();
        let settings = Settings { allow_destroy: true, ..Settings::default() };
        let other = beside.join(settings).await.expect("joins");
        // The first server has not heard of it.
        report(&other, "orders", &[(1, 7)]).await.expect("reported");
        let refused = destroy(&one, SURE).await.expect_err("orders needs it");
        assert!(refused.to_string().contains("orders reported 7 envelopes"), "{refused}");
    });
}
