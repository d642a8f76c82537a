//! How often a version wraps, over all replicas together.

use super::*;

const LIMITS: WrapLimits = WrapLimits { block: 8, soft: 24, hard: 40 };

fn limited() -> Settings {
    Settings { wrap_limits: LIMITS, ..Settings::default() }
}

async fn reserved(kms: &FakeKms, number: u32) -> u64 {
    let usage = kms.key_usage(&administrator(), &id("k")).await.expect("usage");
    let version = usage.versions.into_iter().find(|version| version.number == number).expect("there");
    version.used.map_or(0, |used| used.reserved)
}

#[test]
fn replicas_together_wrap_as_often_as_the_limit_and_not_once_more() {
    block_on(async {
        let (world, one) = world_with(limited(), &["k"]).await;
        let beside = world.beside();
        let two = beside.join(limited()).await.expect("joins");
        let none = context(&[]);
        let (mut made, mut refused) = ([0, 0], 0);
        while refused < 2 {
            refused = 0;
            for (place, kms) in [&one, &two].into_iter().enumerate() {
                match wrap(kms, "k", &none).await {
                    Ok(_) => made[place] += 1,
                    Err(error) => {
                        assert_eq!(error.reason(), "WRAPS_USED_UP", "{error}");
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!(made[0] + made[1], LIMITS.hard, "{made:?}");
        assert_eq!(reserved(&one, 1).await, LIMITS.hard);
    });
}

#[test]
fn a_process_that_dies_leaves_its_block_unused_and_never_twice_used() {
    block_on(async {
        let (world, kms) = world_with(limited(), &["k"]).await;
        let none = context(&[]);
        let mut made = 0;
        let mut kms = Some(kms);
        // Each run makes one wrap of its block and is gone.
        while let Some(run) = kms.take() {
            match wrap(&run, "k", &none).await {
                Ok(_) => made += 1,
                Err(error) => {
                    assert_eq!(error.reason(), "WRAPS_USED_UP");
                    break;
                }
            }
            drop(run);
            kms = Some(world.open(limited()).await.expect("opens"));
        }
        assert_eq!(made, LIMITS.hard / LIMITS.block);
    });
}

#[test]
fn unwrapping_costs_nothing_of_the_budget_and_goes_on_past_its_end() {
    block_on(async {
        let (_, kms) = world_with(limited(), &["k"]).await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        while wrap(&kms, "k", &none).await.is_ok() {}
        for _ in 0..100 {
            unwrap(&kms, "k", &wrapped, &none).await.expect("opened");
        }
        assert_eq!(reserved(&kms, 1).await, LIMITS.hard);
    });
}

#[test]
fn a_version_that_is_short_of_wraps_is_rotated_before_it_has_none() {
    block_on(async {
        let (world, kms) = world_with(limited(), &["k"]).await;
        let none = context(&[]);
        for _ in 0..16 {
            wrap(&kms, "k", &none).await.expect("wrapped");
        }
        assert_eq!(kms.run_due(soon()).await, 0, "half is left");
        wrap(&kms, "k", &none).await.expect("wrapped");
        assert_eq!(kms.run_due(soon()).await, 1, "the third block reaches the soft limit");
        assert_eq!(kms.run_due(soon()).await, 0, "once");
        world.clock.advance(SECOND * 30);
        assert_eq!(wrap(&kms, "k", &none).await.expect("wrapped").version, 2);
        assert_eq!(kms.run_due(soon()).await, 0);
    });
}

#[test]
fn wraps_that_the_store_does_not_know_of_are_not_made() {
    block_on(async {
        let (world, kms) = world_with(limited(), &["k"]).await;
        world.store.fail_next(kms_core::store::Fault::Unavailable("full".to_owned()));
        assert_eq!(reason(wrap(&kms, "k", &context(&[])).await), Some("STORE_UNAVAILABLE"));
        wrap(&kms, "k", &context(&[])).await.expect("wrapped");
    });
}

#[test]
fn a_version_that_is_planned_for_later_does_not_leave_the_key_without_wraps() {
    block_on(async {
        let (world, kms) = world_with(limited(), &["k"]).await;
        let none = context(&[]);
        let at = kms_core::Clock::now(&*world.clock) + DAY * 100;
        let takes_over = kms_core::key::TakeOver::At(at);
        let planned = RotateKey { takes_over, ..RotateKey::new(id("k")) };
        kms.rotate_key(&administrator(), planned, soon()).await.expect("planned");
        while wrap(&kms, "k", &none).await.is_ok() {}
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(wrap(&kms, "k", &none).await.expect("at once").version, 3);
        world.clock.advance(DAY * 101);
        assert_eq!(wrap(&kms, "k", &none).await.expect("wrapped").version, 3, "the newest one wraps on");
    });
}

#[test]
fn after_an_older_store_was_accepted_no_version_of_before_wraps_and_all_unwrap() {
    block_on(async {
        let (world, kms) = world_with(limited(), &["k"]).await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        let backup = world.store.copy();
        kms.disable_key_version(&administrator(), change(1)).await.expect("disabled");
        kms.enable_key_version(&administrator(), change(1), soon()).await.expect("enabled");
        drop(kms);
        let world = World { store: backup.into(), ..world.clone() };
        let log = kms_core::fakes::ServerLog::keep();
        let kms = world.open(limited()).await.expect("opens");
        let code = log.acceptance_code().expect("the log has a code");
        assert_eq!(reason(wrap(&kms, "k", &none).await), Some("RECOVERY_MODE"));
        kms.accept_older_store(&administrator(), &code, soon()).await.expect("accepted");
        assert_eq!(reason(wrap(&kms, "k", &none).await), Some("WRAPS_USED_UP"));
        unwrap(&kms, "k", &wrapped, &none).await.expect("opened");
        assert_eq!(kms.run_due(soon()).await, 1);
        assert_eq!(wrap(&kms, "k", &none).await.expect("at once").version, 2);
    });
}
