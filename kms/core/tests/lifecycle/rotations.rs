//! Rotations at a time, and at once.

use super::*;

#[test]
fn a_rotation_takes_over_at_the_time_that_was_asked_for_also_when_its_birth_was_cut_short() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let now = kms_core::Clock::now(&world.clock);
        let at = now + DAY;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::At(at)).await.expect_err("cut short");
        assert_eq!(kms.resume_births(soon()).await, 1);
        world.clock.advance(DAY - SignedDuration::from_secs(1));
        assert_eq!(signer(&kms).await, Ok(1));
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(signer(&kms).await, Ok(2));
    });
}

#[test]
fn a_time_that_would_skip_the_lead_is_refused_with_the_earliest_one() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let now = kms_core::Clock::now(&world.clock);
        for at in [now - HOUR, now, now + HOUR] {
            let error = rotate(&kms, TakeOver::At(at)).await.expect_err("within the lead");
            assert_eq!(error.field(), Some("activate_time"));
            let earliest = now + HOUR + SignedDuration::from_secs(121);
            assert!(error.to_string().contains(&format!("{earliest:.0}")), "{error}");
        }
        assert_eq!(rotate(&kms, TakeOver::At(now + HOUR + SignedDuration::from_mins(1))).await.err(), None);
    });
}

#[test]
fn an_emergency_signs_at_once_is_an_action_of_its_own_and_is_the_same_after_a_cut() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("rotated").row.number, 2);
        assert_eq!(signer(&kms).await, Ok(2));
        // What the old version signed still verifies.
        assert_eq!(states(&kms).await, [KeyState::Deactivated, KeyState::Active]);
        assert_eq!(published(&kms), 2);
        let events = world.log.events();
        assert!(events.iter().any(|event| event.action == Action::EmergencyRotateKey));
        assert!(events.iter().all(|event| event.action != Action::RotateKey));

        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::AtOnce).await.expect_err("cut short");
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(kms.resume_births(soon()).await, 1);
        assert_eq!(signer(&kms).await, Ok(3));
    });
}

#[test]
fn an_emergency_takes_the_version_that_waits_for_its_time_before_it_makes_another() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        assert_eq!(signer(&kms).await, Ok(1));
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("promoted").row.number, 2);
        assert_eq!(signer(&kms).await, Ok(2));
        assert_eq!(rotate(&kms, TakeOver::AtOnce).await.expect("rotated").row.number, 3);
        assert_eq!(signer(&kms).await, Ok(3));
    });
}

#[test]
fn a_rotation_for_a_time_does_not_adopt_one_for_another_time() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::AfterLead).await.expect_err("cut short");
        let at = kms_core::Clock::now(&world.clock) + DAY;
        assert_eq!(reason(rotate(&kms, TakeOver::At(at)).await), "ROTATED_MEANWHILE");
    });
}

#[test]
fn an_emergency_makes_the_signer_of_what_it_names_also_when_several_versions_wait() {
    block_on(async {
        let (_, kms) = world_with(new("k")).await;
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        rotate(&kms, TakeOver::AfterLead).await.expect("rotated");
        for expected in [3, 4, 5] {
            let version = rotate(&kms, TakeOver::AtOnce).await.expect("an emergency");
            assert_eq!((version.row.number, version.primary), (expected, true));
            assert_eq!(signer(&kms).await, Ok(expected));
        }
        let next = kms.get_key(&administrator(), &id("k")).await.expect("there").next_rotation;
        let period = KeyClass::built_in(ClassName::JwtSigning).periods.rotation_period.expect("a period");
        assert!(next.expect("planned") > kms_core::Clock::now(&World::default().clock) + period - HOUR);
    });
}

#[test]
fn a_rotation_without_a_time_is_not_answered_with_one_that_is_planned_for_later() {
    block_on(async {
        let (world, kms) = world_with(new("k")).await;
        let at = kms_core::Clock::now(&world.clock) + DAY * 60;
        world.hsm.set_fault(HsmFault::GenerateLosesAnswer);
        rotate(&kms, TakeOver::At(at)).await.expect_err("cut short");
        assert_eq!(reason(rotate(&kms, TakeOver::AfterLead).await), "ROTATED_MEANWHILE");
    });
}
