//! Access tokens with a period, and those that are bound to a client certificate.

use kms_core::{Clock as _, time::SignedDuration};

use super::*;

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

fn token(name: &str) -> CreateAccessToken {
    let own = OwnRole { role: Role::Unsealer, keys: KeyScope::All };
    CreateAccessToken { period: Some(hours(24)), ..CreateAccessToken::new(name, own) }
}

#[test]
fn a_token_with_a_period_lives_as_long_as_it_is_renewed_in_time() {
    block_on(async {
        let (world, kms) = a_world().await;
        let (made, _) = kms.create_access_token(&administrator(), token("vault")).await.expect("made");
        let own = made.own.clone().expect("a role");
        let vault = Caller::new("access-token:vault", own.role, own.keys);
        assert_eq!(made.expires_at, Some(world.clock.now() + hours(24)));
        for _ in 0..3 {
            world.clock.advance(hours(23));
            let renewed = kms.renew_access_token(&vault).await.expect("renewed");
            assert_eq!(renewed.expires_at, Some(world.clock.now() + hours(24)));
            assert!(kms.authenticate(&made.sha256, None).is_some());
        }
        world.clock.advance(hours(24));
        assert!(kms.authenticate(&made.sha256, None).is_none(), "it came too late");
        assert_eq!(reason(kms.renew_access_token(&vault).await), Err("NOT_RENEWABLE"));
    });
}

#[test]
fn no_renewal_goes_past_its_bound_or_brings_a_revoked_token_back() {
    block_on(async {
        let (world, kms) = a_world().await;
        let bound = Some(world.clock.now() + hours(30));
        let bounded = CreateAccessToken { renewable_until: bound, ..token("bounded") };
        kms.create_access_token(&administrator(), bounded).await.expect("made");
        let caller = Caller::new("access-token:bounded", Role::Unsealer, KeyScope::All);
        world.clock.advance(hours(20));
        for _ in 0..2 {
            assert_eq!(kms.renew_access_token(&caller).await.expect("renewed").expires_at, bound);
        }
        kms.revoke_access_token(&administrator(), "bounded").await.expect("revoked");
        assert_eq!(reason(kms.renew_access_token(&caller).await), Err("NOT_RENEWABLE"));
        let without = CreateAccessToken { period: None, ..token("without") };
        kms.create_access_token(&administrator(), without).await.expect("made");
        let caller = Caller::new("access-token:without", Role::Unsealer, KeyScope::All);
        assert_eq!(reason(kms.renew_access_token(&caller).await), Err("NOT_RENEWABLE"));
        assert_eq!(reason(kms.renew_access_token(&named("unix:1")).await), Err("NOT_RENEWABLE"));
    });
}

#[test]
fn a_token_bound_to_a_certificate_is_worth_nothing_without_it() {
    block_on(async {
        let (_world, kms) = a_world().await;
        let vault = principal("spiffe://example.org/vault");
        let bound = CreateAccessToken { bound_to: Some(vault.clone()), ..token("bound") };
        let (made, _) = kms.create_access_token(&administrator(), bound).await.expect("made");
        let other = principal("spiffe://example.org/other");
        let comes = |certificate| kms.authenticate(&made.sha256, certificate).is_some();
        assert_eq!([comes(None), comes(Some(&other)), comes(Some(&vault))], [false, false, true]);
        let (free, _) = kms.create_access_token(&administrator(), token("free")).await.expect("made");
        assert!(kms.authenticate(&free.sha256, Some(&other)).is_some());
    });
}

#[test]
fn odd_tokens_are_refused_with_their_field() {
    block_on(async {
        let (world, kms) = a_world().await;
        let field = async |request| {
            kms.create_access_token(&administrator(), request).await.map(drop).map_err(|error| error.field())
        };
        let short = Some(SignedDuration::from_millis(999));
        assert_eq!(field(CreateAccessToken { ttl: short, ..token("a") }).await, Err(Some("ttl")));
        assert_eq!(
            field(CreateAccessToken { period: short, ..token("a") }).await,
            Err(Some("access_token.period"))
        );
        let past = Some(world.clock.now());
        let wrong = Err(Some("access_token.renewable_until"));
        assert_eq!(field(CreateAccessToken { renewable_until: past, ..token("a") }).await, wrong);
        let no_period =
            CreateAccessToken { period: None, renewable_until: past.map(|now| now + hours(1)), ..token("a") };
        assert_eq!(field(no_period).await, wrong);
        for who in ["unix:1", "jwt:a/b", "access-token:a"] {
            let bound_to = Some(principal(who));
            assert_eq!(
                field(CreateAccessToken { bound_to, ..token("a") }).await,
                Err(Some("access_token.bound_to"))
            );
        }
    });
}
