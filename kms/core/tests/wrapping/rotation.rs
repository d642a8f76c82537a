//! Rotation swaps the version that wraps; what older ones wrapped opens for ever, and can be moved.

use super::*;

#[test]
fn every_version_opens_what_it_wrapped_however_old_it_is() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let mut wrapped = Vec::new();
        // More than may stand in a JWKS.
        for number in 1..=12 {
            let made = wrap(&kms, "k", &none).await.expect("wrapped");
            assert_eq!(made.version, number);
            wrapped.push(made.wrapped);
            rotate(&world, &kms).await;
        }
        world.clock.advance(DAY * 3650);
        for wrapped in &wrapped {
            let opened = unwrap(&kms, "k", wrapped, &none).await.expect("opened");
            assert_eq!((opened.plaintext.expose_secret(), opened.is_primary), (&SECRET[..], false));
        }
    });
}

#[test]
fn the_old_version_wraps_until_the_new_ones_time_and_only_one_does() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        kms.rotate_key(&administrator(), RotateKey::new(id("k")), soon()).await.expect("rotated");
        assert_eq!(
            wrap(&kms, "k", &none).await.expect("wrapped").version,
            1,
            "replicas must hear of it first"
        );
        assert_eq!(states(&kms).await, [KeyState::Active, KeyState::PreActivation]);
        world.clock.advance(SECOND * 30);
        assert_eq!(wrap(&kms, "k", &none).await.expect("wrapped").version, 2);
        assert_eq!(states(&kms).await, [KeyState::Deactivated, KeyState::Active]);
    });
}

#[test]
fn a_rewrap_moves_to_the_new_version_and_keeps_all_else() {
    block_on(async {
        let (world, kms) = a_world().await;
        let tenant = context(&[("tenant", "acme")]);
        let old = wrap(&kms, "k", &tenant).await.expect("wrapped").wrapped;
        rotate(&world, &kms).await;
        let new = rewrap(&kms, Role::User, &old).await.expect("rewrapped");
        let opened = unwrap(&kms, "k", &new, &tenant).await.expect("opened");
        assert_eq!(
            (opened.plaintext.expose_secret(), opened.version, opened.is_primary),
            (&SECRET[..], 2, true)
        );
        assert_eq!(reason(unwrap(&kms, "k", &new, &context(&[])).await), Some("NOT_OPENED"));
        let (old, new) = (old.to_bytes(), new.to_bytes());
        assert_eq!(
            (&old[..24], &old[28..76]),
            (&new[..24], &new[28..76]),
            "but for the version, the header is the same"
        );
    });
}

#[test]
fn a_version_is_revoked_and_only_who_may_recover_moves_what_it_wrapped() {
    block_on(async {
        let (_, kms) = a_world().await;
        let none = context(&[]);
        let old = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        revoke(&kms, 1).await;
        assert_eq!(states(&kms).await, [KeyState::Compromised, KeyState::Active]);
        assert_eq!(wrap(&kms, "k", &none).await.expect("wrapped").version, 2, "a successor wraps at once");
        for role in [Role::User, Role::RawSigner] {
            assert_eq!(reason(unwrap_as(&kms, role, "k", &old, &none).await), Some("PERMISSION_DENIED"));
            assert_eq!(reason(rewrap(&kms, role, &old).await), Some("PERMISSION_DENIED"));
        }
        unwrap_as(&kms, Role::Recoverer, "k", &old, &none).await.expect("recovered");
        let moved = rewrap(&kms, Role::Recoverer, &old).await.expect("moved");
        unwrap(&kms, "k", &moved, &none).await.expect("anybody opens it again");
    });
}

#[test]
fn a_disabled_version_neither_wraps_nor_unwraps_until_it_is_enabled() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let old = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        rotate(&world, &kms).await;
        kms.disable_key_version(&administrator(), change(1)).await.expect("disabled");
        for role in [Role::User, Role::Recoverer] {
            assert_eq!(reason(unwrap_as(&kms, role, "k", &old, &none).await), Some("VERSION_NOT_IN_USE"));
        }
        kms.enable_key_version(&administrator(), change(1), soon()).await.expect("enabled");
        unwrap(&kms, "k", &old, &none).await.expect("opened");
        assert_eq!(wrap(&kms, "k", &none).await.expect("wrapped").version, 2, "the newer one wraps on");
    });
}

#[test]
fn a_version_of_the_future_is_not_taken_for_a_forgery() {
    block_on(async {
        let (_, kms) = a_world().await;
        let none = context(&[]);
        let mut wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped.to_bytes();
        wrapped[27] = 2;
        let wrapped = WrappedKey::parse(&wrapped).expect("of version 2");
        let refused = unwrap(&kms, "k", &wrapped, &none).await.expect_err("not known");
        assert_eq!(refused.reason(), "VERSION_NOT_KNOWN");
        assert!(refused.retry_delay().is_some(), "it may come");
    });
}

#[test]
fn a_birth_that_is_cut_off_is_resumed_with_the_key_that_is_there() {
    block_on(async {
        let (world, kms) = a_world().await;
        world.hsm.set_fault(kms_core::fakes::HsmFault::GenerateLosesAnswer);
        let key = CreateKey::new(id("late"), Algorithm::A256GcmKw);
        kms.create_key(&administrator(), key, soon()).await.expect_err("the answer was lost");
        let (_, made) = world.hsm.count();
        world.clock.advance(SECOND * 60);
        assert_eq!(kms.resume_births(soon()).await, 1);
        assert_eq!(world.hsm.count().1, made, "no second key was generated");
        let none = context(&[]);
        let wrapped = wrap(&kms, "late", &none).await.expect("wrapped").wrapped;
        unwrap(&kms, "late", &wrapped, &none).await.expect("opened");
    });
}

#[test]
fn a_key_that_could_be_extracted_is_never_used() {
    block_on(async {
        let (world, kms) = a_world().await;
        world.hsm.set_fault(kms_core::fakes::HsmFault::GenerateExtractable);
        let key = CreateKey::new(id("bad"), Algorithm::A256GcmKw);
        kms.create_key(&administrator(), key, soon()).await.expect_err("not as it must be");
        assert_eq!(reason(wrap(&kms, "bad", &context(&[])).await), Some("NO_ACTIVE_VERSION"));
        // One that is changed behind our back is taken out of service.
        let cka_id = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed")[0].row.cka_id;
        world.hsm.tamper(cka_id, |object| object.other_use = true);
        kms.audit_attributes(soon()).await.expect("audited");
        assert_eq!(states(&kms).await, [KeyState::Suspended]);
    });
}

#[test]
fn another_key_in_its_place_opens_and_wraps_nothing() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        let cka_id = kms.list_key_versions(&administrator(), &id("k")).await.expect("listed")[0].row.cka_id;
        world.hsm.replace(cka_id, kms_core::algorithm::KeySpec::Aes256);
        for refused in
            [reason(wrap(&kms, "k", &none).await), reason(unwrap(&kms, "k", &wrapped, &none).await)]
        {
            assert_eq!(refused, Some("INTERNAL"), "it is another key: nothing must be lost under it");
        }
    });
}

#[test]
fn a_version_whose_birth_is_not_over_here_may_wrap_elsewhere_already() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let mut wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped.to_bytes();
        world.hsm.set_fault(kms_core::fakes::HsmFault::GenerateFails);
        kms.rotate_key(&administrator(), RotateKey::new(id("k")), soon()).await.expect_err("no birth");
        wrapped[27] = 2;
        let wrapped = WrappedKey::parse(&wrapped).expect("of version 2");
        assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("VERSION_NOT_KNOWN"));
    });
}
