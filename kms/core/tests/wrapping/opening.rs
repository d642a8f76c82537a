//! A wrapped key opens with its key, its context and through its door, and with nothing else.

use kms_core::{fakes::HsmFault, verbs::Sign};

use super::*;

#[test]
fn what_is_wrapped_opens_again_and_says_which_version_it_was() {
    block_on(async {
        let (_, kms) = a_world().await;
        let tenant = context(&[("tenant", "acme"), ("table", "orders")]);
        let wrapped = wrap(&kms, "k", &tenant).await.expect("wrapped");
        assert_eq!(wrapped.version, 1);
        let opened = unwrap(&kms, "k", &wrapped.wrapped, &tenant).await.expect("opened");
        assert_eq!(
            (opened.plaintext.expose_secret(), opened.version, opened.is_primary),
            (&SECRET[..], 1, true)
        );
    });
}

#[test]
fn no_pair_of_another_key_and_another_context_opens() {
    block_on(async {
        let names = ["k", "l", "m"];
        let (_, kms) = world_with(Settings::default(), &names).await;
        let contexts = [
            context(&[]),
            context(&[("a", "")]),
            context(&[("a", "b")]),
            context(&[("ab", "")]),
            context(&[("a", "b"), ("b", "a")]),
        ];
        let all = || names.iter().flat_map(|name| contexts.iter().map(move |context| (*name, context)));
        let mut opened = 0;
        for (made_with, of) in all() {
            let wrapped = wrap(&kms, made_with, of).await.expect("wrapped").wrapped;
            for (name, context) in all() {
                let result = unwrap(&kms, name, &wrapped, context).await;
                if (name, context) == (made_with, of) {
                    opened += usize::from(result.is_ok());
                } else {
                    assert_eq!(
                        reason(result),
                        Some("NOT_OPENED"),
                        "{made_with} {of:?} as {name} {context:?}"
                    );
                }
            }
        }
        assert_eq!(opened, 15);
    });
}

#[test]
fn not_one_bit_may_differ() {
    block_on(async {
        let (_, kms) = a_world().await;
        let none = context(&[]);
        let whole = wrap(&kms, "k", &none).await.expect("wrapped").wrapped.to_bytes();
        let mut parsed = 0;
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(flipped) = WrappedKey::parse(&flipped) else { continue };
            parsed += 1;
            let refused = reason(unwrap(&kms, "k", &flipped, &none).await);
            // A version that is not there yet may come.
            assert!(matches!(refused, Some("NOT_OPENED" | "VERSION_NOT_KNOWN")), "bit {bit}: {refused:?}");
        }
        assert!(parsed > (whole.len() - 16) * 8, "only {parsed} of {} bits", whole.len() * 8);
    });
}

#[test]
fn what_was_wrapped_through_another_door_does_not_open_here() {
    block_on(async {
        let (_, kms) = a_world().await;
        let none = context(&[]);
        let mut wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped.to_bytes();
        for door in [2, 3] {
            wrapped[6] = door;
            let wrapped = WrappedKey::parse(&wrapped).expect("of another door");
            assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("NOT_OPENED"));
            assert_eq!(reason(rewrap(&kms, Role::User, &wrapped).await), Some("NOT_OPENED"));
        }
    });
}

#[test]
fn keys_that_wrap_sign_nothing_and_keys_that_sign_wrap_nothing() {
    block_on(async {
        let (_, kms) = a_world().await;
        let signing = CreateKey::new(id("s"), Algorithm::Es256);
        kms.create_key(&administrator(), signing, soon()).await.expect("created");
        let none = context(&[]);
        assert_eq!(reason(wrap(&kms, "s", &none).await), Some("WRONG_PURPOSE"));
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        assert_eq!(reason(unwrap(&kms, "s", &wrapped, &none).await), Some("WRONG_PURPOSE"));
        let input = kms_core::verbs::ToSign::Digest(vec![0; 32]);
        let sign = Sign { id: id("k"), version: None, input, encoding: Default::default() };
        assert_eq!(reason(kms.sign(&administrator(), sign, soon()).await), Some("WRONG_PURPOSE"));
        assert_eq!(reason(kms.public_key(&administrator(), &id("k"), None).await), Some("NO_PUBLIC_KEY"));
        assert!(kms.published_keys(Some(&id("k"))).expect("known").is_none(), "it stands in no key set");
        let all = kms.published_keys(None).expect("known").expect("a set");
        assert_eq!(String::from_utf8_lossy(&all.body).matches("kid").count(), 1, "the one that signs");
        for (purpose, algorithm) in [
            (kms_core::key::Purpose::Jwt, Algorithm::A256GcmKw),
            (kms_core::key::Purpose::Wrap, Algorithm::Es256),
        ] {
            let key = CreateKey { purpose, ..CreateKey::new(id("odd"), algorithm) };
            let refused = kms.create_key(&administrator(), key, soon()).await.expect_err("refused");
            assert_eq!(refused.field(), Some("purpose"));
        }
    });
}

#[test]
fn a_name_that_the_key_requires_must_stand_in_the_context() {
    block_on(async {
        let (_, kms) = a_world().await;
        let key = CreateKey {
            required_context: vec!["tenant".to_owned()],
            ..CreateKey::new(id("strict"), Algorithm::A256GcmKw)
        };
        kms.create_key(&administrator(), key, soon()).await.expect("created");
        let refused = wrap(&kms, "strict", &context(&[("table", "t")])).await.expect_err("refused");
        assert_eq!(refused.field(), Some("encryption_context"));
        assert!(refused.to_string().contains("tenant"), "{refused}");
        wrap(&kms, "strict", &context(&[("tenant", "")])).await.expect("wrapped");
        let key = CreateKey {
            required_context: vec!["tenant".to_owned()],
            ..CreateKey::new(id("s"), Algorithm::Es256)
        };
        let refused = kms.create_key(&administrator(), key, soon()).await.expect_err("it has no contexts");
        assert_eq!(refused.field(), Some("required_context"));
    });
}

#[test]
fn keys_of_a_length_that_is_no_keys_are_refused() {
    block_on(async {
        let (_, kms) = a_world().await;
        for len in [0, 15, 1025] {
            let request = WrapKey { plaintext: SecretBytes::new(vec![1; len]), ..to_wrap("k", context(&[])) };
            let refused = kms.wrap_key(&as_role(Role::User), request, soon()).await.expect_err("refused");
            assert_eq!(refused.field(), Some("plaintext"), "{len}");
        }
    });
}

#[test]
fn of_a_batch_each_item_has_its_own_outcome_and_its_own_record() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let before = world.log.events().len();
        let requests = ["k", "nobody", "k"].map(|name| to_wrap(name, none.clone()));
        let results =
            kms.batch_wrap_key(&as_role(Role::User), requests.into(), soon()).await.expect("a batch");
        let reasons: Vec<_> = results.iter().map(|result| result.as_ref().err().map(Error::reason)).collect();
        assert_eq!(reasons, [None, Some("NOT_FOUND"), None]);
        assert_eq!(world.log.events().len() - before, 3, "one record an item");
        let too_many = (0..129).map(|_| to_wrap("k", none.clone())).collect();
        let refused = kms.batch_wrap_key(&as_role(Role::User), too_many, soon()).await.expect_err("refused");
        assert_eq!(refused.field(), Some("requests"));
        assert!(kms.batch_wrap_key(&as_role(Role::User), vec![], soon()).await.is_err());
    });
}

#[test]
fn a_key_that_opens_what_it_must_not_is_not_born() {
    block_on(async {
        let (world, kms) = world_with(Settings::default(), &[]).await;
        let key = CreateKey::new(id("k"), Algorithm::A256GcmKw);
        // Of what a birth tries to open, another IV and another AAD are garbage; each is met once.
        world.hsm.set_fault(HsmFault::UnwrapOpensGarbage);
        kms.create_key(&administrator(), key, soon()).await.expect_err("it opens garbage");
        let none = context(&[]);
        assert_eq!(reason(wrap(&kms, "k", &none).await), Some("NO_ACTIVE_VERSION"));
        kms.resume_births(soon()).await;
        wrap(&kms, "k", &none).await.expect("it was passing, and is born");
    });
}

#[test]
fn a_failure_of_the_hsm_is_not_taken_for_a_wrong_context() {
    block_on(async {
        let (world, kms) = a_world().await;
        let none = context(&[]);
        let wrapped = wrap(&kms, "k", &none).await.expect("wrapped").wrapped;
        world.hsm.set_fault(HsmFault::UnwrapFails);
        assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("INTERNAL"));
        world.hsm.set_fault(HsmFault::WrapFails);
        assert_eq!(reason(wrap(&kms, "k", &none).await), Some("INTERNAL"));
        world.hsm.set_down(true);
        assert_eq!(reason(unwrap(&kms, "k", &wrapped, &none).await), Some("HSM_UNAVAILABLE"));
        world.hsm.set_down(false);
        unwrap(&kms, "k", &wrapped, &none).await.expect("opened");
    });
}
