//! Versions in other hands.

use super::*;

#[test]
fn a_revoked_version_is_refused_everywhere_at_once_and_another_one_signs() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        let revoked = revoke(&kms, 1).await.expect("revoked");
        assert_eq!(revoked.version.state, Some(KeyState::Compromised));
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(2));
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
        assert_eq!((signer(&kms).await, published(&kms)), (Ok(2), 1));
        let enable = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        assert_eq!(reason(kms.enable_key_version(&administrator(), enable, soon()).await), "COMPROMISED");
        assert_eq!(states(&kms).await[0], KeyState::Compromised, "for good");
        let row = &kms.list_key_versions(&administrator(), &id("k")).await.expect("listed")[0].row;
        assert_eq!(
            row.compromise.as_ref().map(|compromise| compromise.reason.as_str()),
            Some("seen on a paste site")
        );
        // Once more changes nothing: neither the reason nor the versions.
        assert_eq!(revoke(&kms, 1).await.expect("again").version.row, *row);
        assert_eq!(states(&kms).await.len(), 2);
    });
}

#[test]
fn what_waits_for_its_time_succeeds_what_was_revoked() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        let revoked = revoke(&kms, 1).await.expect("revoked");
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(2));
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
    });
}

#[test]
fn when_what_waits_is_revoked_the_version_before_it_signs_on() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        let revoked = revoke(&kms, 2).await.expect("revoked");
        assert_eq!(revoked.successor.map(|version| version.row.number), Some(1));
        world.clock.advance(HOUR * 10);
        assert_eq!((signer(&kms).await, published(&kms)), (Ok(1), 1));
    });
}

#[test]
fn a_revocation_does_not_wait_for_the_hsm_and_the_successor_comes_by_itself() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        world.hsm.set_down(true);
        let revoked = revoke(&kms, 1).await.expect("revoked without the HSM");
        assert!(revoked.successor.is_none());
        assert_eq!(published(&kms), 0);
        assert_eq!(reason(signer(&kms).await), "NO_ACTIVE_VERSION");
        world.hsm.set_down(false);
        kms.resume_births(soon()).await;
        kms.run_due(soon()).await;
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(kms.run_due(soon()).await, 0, "and only one");
    });
}

#[test]
fn when_the_signer_is_revoked_a_version_on_its_way_signs_as_soon_as_it_is_born() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::AfterLead).await.expect_err("cut short");
        assert!(revoke(&kms, 1).await.expect("revoked").successor.is_none());
        assert_eq!(kms.resume_births(soon()).await, 1);
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(kms.run_due(soon()).await, 0);
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
    });
}

#[test]
fn a_version_that_was_disabled_first_and_then_revoked_is_succeeded_too() {
    block_on(async {
        for has_next in [false, true] {
            let (_, kms) = world_with(new("k")).await;
            if has_next {
                rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
            }
            let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
            kms.disable_key_version(&administrator(), change).await.expect("disabled");
            let successor = revoke(&kms, 1).await.expect("revoked").successor;
            assert_eq!(successor.map(|version| version.row.number), Some(2), "with a next one: {has_next}");
        }
    });
}

#[test]
fn a_revocation_whose_process_dies_is_succeeded_by_the_next() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        // Neither is the row of the successor written: the first two commits are the revocation and its epoch.
        world.store.fail_after(2, kms_core::store::Fault::Unavailable("set by the test".to_owned()));
        assert!(revoke(&kms, 1).await.expect("revoked").successor.is_none());
        let next = world.open(Settings::default()).await.expect("opens");
        assert_eq!(next.run_due(soon()).await, 1);
        assert_eq!(signer(&next).await, Ok(2));
        let by: Vec<_> = world.log.events().into_iter().map(|event| (event.caller, event.action)).collect();
        assert!(by.contains(&("system:scheduler".into(), Action::EmergencyRotateKey)), "{by:?}");
    });
}

#[test]
fn who_ends_a_key_after_a_revocation_gets_no_successor_again() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        revoke(&kms, 1).await.expect("revoked");
        let change = ChangeVersion { id: id("k"), number: 2, request: Request::default() };
        kms.disable_key_version(&administrator(), change).await.expect("disabled");
        assert_eq!(kms.run_due(soon()).await, 0);
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Suspended]);
    });
}

#[test]
fn a_revocation_needs_a_reason() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        for reason in ["", "  ", "a\nb", &"x".repeat(1_025)] {
            let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
            let request = RevokeKeyVersion { change, reason: reason.to_owned() };
            let error = kms.revoke_key_version(&administrator(), request, soon()).await.expect_err(reason);
            assert_eq!(error.field(), Some("reason"));
        }
        assert_eq!(states(&kms).await, [KeyState::Active]);
    });
}

#[test]
fn a_successor_that_the_request_could_not_make_signs_at_once_also_when_a_rotation_would_be_due() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        world.clock.advance(HOUR * 4);
        world.hsm.set_down(true);
        assert!(revoke(&kms, 2).await.expect("revoked").successor.is_none());
        world.hsm.set_down(false);
        world.clock.advance(DAY * 31);
        let next = world.open(Settings::default()).await.expect("opens");
        next.resume_births(soon()).await;
        next.run_due(soon()).await;
        assert_eq!(signer(&next).await, Ok(3));
    });
}

#[test]
fn a_successor_is_made_at_once_when_a_rotation_is_due_and_nothing_was_begun() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        world.clock.advance(DAY * 29);
        // The revocation and its epoch; the row of the successor is not written.
        world.store.fail_after(2, kms_core::store::Fault::Unavailable("set by the test".to_owned()));
        assert!(revoke(&kms, 2).await.expect("revoked").successor.is_none());
        world.clock.advance(DAY * 2);
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(signer(&kms).await, Ok(3));
    });
}

#[test]
fn a_version_that_was_disabled_before_its_time_does_not_stand_in_the_way_of_a_successor() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        let change = ChangeVersion { id: id("k"), number: 2, request: Request::default() };
        kms.disable_key_version(&administrator(), change).await.expect("disabled");
        let successor = revoke(&kms, 1).await.expect("revoked").successor;
        assert_eq!(successor.map(|version| version.row.number), Some(3));
    });
}
