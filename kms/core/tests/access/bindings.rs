//! Role bindings in their life: narrowed, bounded in time and by context, revoked; and that they cannot be stretched.

use kms_core::{
    Clock as _,
    lane::Lane,
    time::SignedDuration,
    verbs::{GenerateDataKey, ListKeys, UpdateKey, WrapKey},
};
use kms_envelope::EncryptionContext;

use super::*;

const APP: &str = "spiffe://example.org/app";

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

#[test]
fn a_binding_holds_from_its_start_to_its_end_and_until_it_is_revoked() {
    block_on(async {
        let (world, kms) = a_world().await;
        let now = world.clock.now();
        let bounded = CreateRoleBinding {
            not_before: Some(now + hours(1)),
            expires_at: Some(now + hours(2)),
            ..binding("app", APP, Role::User, "key:signs")
        };
        kms.create_role_binding(&administrator(), bounded).await.expect("bound");
        bind(&kms, "app-2", APP, Role::User, "key:wraps").await;
        let may = async || {
            let app = named(APP);
            [kms.get_key(&app, &id("signs")).await.is_ok(), kms.get_key(&app, &id("wraps")).await.is_ok()]
        };
        assert_eq!(may().await, [false, true]);
        world.clock.advance(hours(1));
        assert_eq!(may().await, [true, true], "it has begun");
        world.clock.advance(hours(1) - SignedDuration::from_secs(1));
        assert_eq!(may().await, [true, true]);
        world.clock.advance(SignedDuration::from_secs(1));
        assert_eq!(may().await, [false, true], "it has ended");
        kms.revoke_role_binding(&administrator(), &id("app-2")).await.expect("revoked");
        assert_eq!(may().await, [false, false]);
        let again = kms.revoke_role_binding(&administrator(), &id("app-2")).await.expect("nothing changes");
        assert!(again.revoked_at.is_some());
        let taken = kms.create_role_binding(&administrator(), binding("app-2", APP, Role::User, "*")).await;
        assert_eq!(reason(taken), Err("ALREADY_EXISTS"), "a name is not reused");
    });
}

#[test]
fn a_binding_to_some_actions_gives_these_and_no_others() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let only = vec![Action::WrapKey, Action::GetKey, Action::WrapKey];
        let narrowed = CreateRoleBinding { only, ..binding("app", APP, Role::User, "key:wraps") };
        let made = kms.create_role_binding(&administrator(), narrowed).await.expect("bound");
        assert_eq!(made.only, [Action::WrapKey, Action::GetKey]);
        for action in Action::ALL {
            let expected = made.only.contains(&action);
            assert_eq!(allows(&kms, APP, action, Some("wraps")).await, expected, "{action}");
        }
        let foreign =
            CreateRoleBinding { only: vec![Action::RotateKey], ..binding("more", APP, Role::User, "*") };
        let refused = kms.create_role_binding(&administrator(), foreign).await.expect_err("not its action");
        assert_eq!(refused.field(), Some("only"), "{refused}");
    });
}

#[test]
fn a_binding_that_requires_a_context_allows_only_what_has_it() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let required_context = [("tenant".to_owned(), "a\"\\ä".to_owned())].into();
        let tenant = CreateRoleBinding { required_context, ..binding("app", APP, Role::User, "*") };
        kms.create_role_binding(&administrator(), tenant).await.expect("bound");
        let wrap = async |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let context = EncryptionContext::new(pairs).expect("a context");
            let data_key = GenerateDataKey { id: id("wraps"), len: 32, context, with_plaintext: true };
            reason(kms.generate_data_key(&named(APP), data_key, soon()).await)
        };
        let denied = Err("PERMISSION_DENIED");
        // In an order in which a remembered decision would show.
        assert_eq!(wrap(&[("tenant", "a\"\\ä")]).await, Ok(()));
        assert_eq!(wrap(&[]).await, denied);
        assert_eq!(wrap(&[("tenant", "b")]).await, denied);
        assert_eq!(wrap(&[("tenant", "a\"\\ä"), ("row", "7")]).await, Ok(()), "it may say more");
        assert!(
            !allows(&kms, APP, Action::RewrapKey, Some("wraps")).await,
            "a rewrap does not tell its context"
        );
        assert!(
            !allows(&kms, APP, Action::GetKey, Some("wraps")).await,
            "what has no context has not that one"
        );
    });
}

#[test]
fn a_key_admin_of_a_class_makes_keys_there_and_cannot_carry_one_away_or_over() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let (admin, both) = (named("unix:7"), named("unix:8"));
        bind(&kms, "api", "unix:7", Role::KeyAdmin, "class:api").await;
        bind(&kms, "users", "unix:7", Role::User, "label:team=mine").await;
        let create = async |name: &str, class| {
            let request = CreateKey { class, ..CreateKey::new(id(name), Algorithm::Es256) };
            reason(kms.create_key(&admin, request, soon()).await)
        };
        assert_eq!(create("own", ClassName::Api).await, Ok(()));
        assert_eq!(create("other", ClassName::Root).await, Err("PERMISSION_DENIED"));
        let class = UpdateKey { class: Some(ClassName::Session), ..UpdateKey::new(id("own")) };
        assert_eq!(reason(kms.update_key(&admin, class).await), Err("PERMISSION_DENIED"), "out of its class");
        let labels = Some([("team".to_owned(), "mine".to_owned())].into());
        let own = UpdateKey { labels: labels.clone(), ..UpdateKey::new(id("own")) };
        assert_eq!(reason(kms.update_key(&admin, own).await), Ok(()), "inside it");
        let roots = UpdateKey { labels, ..UpdateKey::new(id("roots")) };
        assert_eq!(reason(kms.update_key(&admin, roots).await), Err("PERMISSION_DENIED"));
        // Somebody who manages by one label, and uses by another, cannot put the second on what has the first.
        bind(&kms, "manages", "unix:8", Role::KeyAdmin, "label:team=auth").await;
        let relabelled = Some([("team".to_owned(), "mine".to_owned())].into());
        let carried = UpdateKey { labels: relabelled, ..UpdateKey::new(id("signs")) };
        assert_eq!(reason(kms.update_key(&both, carried).await), Err("PERMISSION_DENIED"));
    });
}

#[test]
fn a_change_of_a_keys_labels_takes_effect_on_decisions_that_were_remembered() {
    block_on(async {
        let (_world, kms) = a_world().await;
        bind(&kms, "app", APP, Role::User, "label:team=auth").await;
        assert!(kms.get_key(&named(APP), &id("signs")).await.is_ok());
        assert!(kms.get_key(&named(APP), &id("signs")).await.is_ok(), "from memory");
        let labels = Some([("team".to_owned(), "other".to_owned())].into());
        let update = UpdateKey { labels, ..UpdateKey::new(id("signs")) };
        kms.update_key(&administrator(), update).await.expect("updated");
        assert_eq!(reason(kms.get_key(&named(APP), &id("signs")).await), Err("PERMISSION_DENIED"));
    });
}

#[test]
fn whoever_has_some_keys_lists_these() {
    block_on(async {
        let (_world, kms) = a_world().await;
        bind(&kms, "a", "unix:7", Role::Auditor, "class:root").await;
        bind(&kms, "b", "unix:7", Role::Auditor, "key:wraps").await;
        let list = ListKeys { limit: 10, ..ListKeys::default() };
        let page = kms.list_keys(&named("unix:7"), list).await.expect("listed");
        let names: Vec<_> = page.keys.iter().map(|view| view.key.id.as_str()).collect();
        assert_eq!(names, ["roots", "wraps"]);
    });
}

#[test]
fn an_unsealer_waits_in_a_lane_of_its_own_when_it_wraps() {
    block_on(async {
        let (world, kms) = a_world().await;
        bind(&kms, "vault", "dns:vault", Role::Unsealer, "key:wraps").await;
        bind(&kms, "app", APP, Role::User, "key:wraps").await;
        for _ in 0..2 {
            for (who, lane) in [("dns:vault", Lane::Unseal), (APP, Lane::Wrap)] {
                let request = WrapKey {
                    id: id("wraps"),
                    plaintext: kms_envelope::SecretBytes::new(vec![7; 32]),
                    context: EncryptionContext::default(),
                    data_key_id: None,
                };
                kms.wrap_key(&named(who), request, soon()).await.expect("wrapped");
                assert_eq!(world.hsm.last_lane(), Some(lane), "{who}");
            }
        }
    });
}

#[test]
fn odd_bindings_are_refused_with_their_field() {
    block_on(async {
        let (world, kms) = a_world().await;
        let now = world.clock.now();
        let field = async |request| {
            kms.create_role_binding(&administrator(), request).await.map(drop).map_err(|error| error.field())
        };
        let good = || binding("b", APP, Role::User, "*");
        let ended = CreateRoleBinding { expires_at: Some(now), ..good() };
        assert_eq!(field(ended).await, Err(Some("expire_time")));
        let backwards = CreateRoleBinding {
            not_before: Some(now + hours(2)),
            expires_at: Some(now + hours(1)),
            ..good()
        };
        assert_eq!(field(backwards).await, Err(Some("expire_time")));
        let many = (0..17).map(|number| (format!("n{number}"), String::new())).collect();
        assert_eq!(
            field(CreateRoleBinding { required_context: many, ..good() }).await,
            Err(Some("required_context"))
        );
        let odd = [(String::new(), String::new())].into();
        assert_eq!(
            field(CreateRoleBinding { required_context: odd, ..good() }).await,
            Err(Some("required_context"))
        );
        let absent = kms.revoke_role_binding(&administrator(), &id("none")).await;
        assert_eq!(reason(absent), Err("NOT_FOUND"));
        assert_eq!(kms.list_role_bindings(&administrator()).await.expect("listed").len(), 0);
    });
}

#[test]
fn the_last_that_can_let_others_in_is_not_revoked_whatever_it_is() {
    block_on(async {
        let (_world, kms) = a_world().await;
        bind(&kms, "alice", "spiffe://example.org/alice", Role::Administrator, "*").await;
        bind(&kms, "some", "spiffe://example.org/bob", Role::Administrator, "key:signs").await;
        let revoke = async |name: &str| reason(kms.revoke_role_binding(&administrator(), &id(name)).await);
        assert_eq!(revoke("alice").await, Err("LAST_ADMINISTRATOR"));
        assert_eq!(revoke("some").await, Ok(()), "it never could");
        let own = OwnRole { role: Role::Administrator, keys: KeyScope::All };
        kms.create_access_token(&administrator(), CreateAccessToken::new("t", own)).await.expect("made");
        assert_eq!(revoke("alice").await, Ok(()), "t remains");
        let last = kms.revoke_access_token(&administrator(), "t").await;
        assert_eq!(reason(last), Err("LAST_ADMINISTRATOR"));
    });
}
