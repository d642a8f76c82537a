//! Destruction by age.

use super::*;

#[test]
fn what_is_withdrawn_is_scheduled_for_destruction_after_its_time_and_is_left_alone_once_called_back() {
    block_on(async {
        let periods = AskedPeriods { destroy_after: Some(DAY * 2), ..AskedPeriods::default() };
        let (world, kms) = world_with(CreateKey { periods, ..new("k") }).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        assert_eq!(kms.run_due(soon()).await, 0, "it still verifies");
        // Withdrawn after ttl + skew + lead.
        world.clock.advance(HOUR * 3);
        assert_eq!(kms.run_due(soon()).await, 1);
        let first = || async { states(&kms).await[0] };
        assert_eq!(first().await, KeyState::Suspended);
        // Not before the delay of a destruction that is asked for by hand, which is 30 days.
        world.clock.advance(DAY * 29);
        kms.run_due(soon()).await;
        assert_eq!(first().await, KeyState::Suspended);
        let change = ChangeVersion { id: id("k"), number: 1, request: Request::default() };
        kms.restore_key_version(&administrator(), change).await.expect("called back");
        world.clock.advance(DAY * 60);
        kms.run_due(soon()).await;
        assert_eq!(first().await, KeyState::Suspended, "and not scheduled again");
    });
}

#[test]
fn what_is_scheduled_by_age_is_destroyed_when_its_time_has_come_and_not_before() {
    block_on(async {
        let periods = AskedPeriods {
            destroy_after: Some(DAY * 40),
            rotation_period: Some(SignedDuration::ZERO),
            ..AskedPeriods::default()
        };
        let (world, kms) = world_with(CreateKey { periods, ..new("k") }).await;
        rotate(&kms, TakeOver::AtOnce).await.expect("rotated");
        world.clock.advance(HOUR + HOUR + SignedDuration::from_mins(5));
        // It verifies on until there is only the delay left in which it can be called off.
        assert_eq!(kms.run_due(soon()).await, 0);
        world.clock.advance(DAY * 10 - SignedDuration::from_secs(1));
        assert_eq!((kms.run_due(soon()).await, states(&kms).await[0]), (0, KeyState::Deactivated));
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!((kms.run_due(soon()).await, states(&kms).await[0]), (1, KeyState::Suspended));
        let before = world.hsm.count();
        world.clock.advance(DAY * 30 - SignedDuration::from_secs(1));
        assert_eq!((kms.run_due(soon()).await, world.hsm.count()), (0, before));
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(states(&kms).await, [KeyState::Destroyed, KeyState::Active]);
        assert_eq!(world.hsm.count().0, before.0 - 1);
    });
}
