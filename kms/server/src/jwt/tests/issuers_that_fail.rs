//! Issuers behind an address: away, slow, lying, back again, with new keys.

use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpListener;

use super::{
    identity_provider::{Answer, IdentityProvider},
    *,
};

/// So short that a test can wait for it; long where nothing is to run out.
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);

struct World {
    provider: IdentityProvider,
    clock: Arc<ManualClock>,
    issuers: Arc<Issuers>,
}

impl World {
    async fn new(answer: Answer) -> Self {
        Self::with_limits(answer, Limits { wait_max: LONG, fetch_max: LONG, waiting_max: 64 }).await
    }

    async fn with_limits(answer: Answer, limits: Limits) -> Self {
        let provider = IdentityProvider::start(answer).await;
        let clock = Arc::new(ManualClock::default());
        let rules = rules(&format!("jwks_url = {:?}", provider.url));
        let issuers = Arc::new(Issuers::with_limits(&rules, clock.clone(), limits));
        Self { provider, clock, issuers }
    }

    /// What becomes of a token of this signer, which lasts as long as the test turns the clock.
    async fn said(&self, signer: &Signer) -> Result<(), Refusal> {
        let mut claims = service_account();
        claims["exp"] = json!(NOW + 86_400);
        self.issuers.decide(&signer.token(&claims)).await.1.map(drop)
    }

    fn advance(&self, seconds: u64) {
        self.clock.elapse(Duration::from_secs(seconds));
    }
}

fn keys(signers: &[&Signer]) -> Answer {
    Answer::keys(&signers.iter().map(|signer| signer.jwk()).collect())
}

#[tokio::test]
async fn nothing_is_asked_before_a_token_needs_it_and_then_once_for_ten_minutes() {
    let signer = Signer::es256("k1");
    let world = World::new(keys(&[&signer])).await;
    assert_eq!(world.provider.asked(), 0);
    // Tokens that are no good anyway do not have anything asked.
    let expired = signer.token(&with("exp", json!(NOW - 3_600)));
    assert_eq!(world.issuers.decide(&expired).await.1.map(drop), Err(Refusal::Expired));
    assert_eq!(world.provider.asked(), 0);
    for _ in 0..10 {
        assert_eq!(world.said(&signer).await, Ok(()));
        world.advance(59);
    }
    assert_eq!(world.provider.asked(), 1);
    world.clock.elapse(Duration::from_millis(9_999));
    assert_eq!(world.said(&signer).await, Ok(()));
    world.clock.elapse(Duration::from_millis(1));
    assert_eq!(world.said(&signer).await, Ok(()));
    world.provider.was_asked(2).await;
    // Not a moment before: the cooldown, which begins with it, is not over yet.
    world.clock.elapse(Duration::from_millis(29_999));
    assert_eq!(world.said(&signer.called("k2")).await, Err(Refusal::NoSuchKey));
    assert_eq!(world.provider.asked(), 2);
    world.clock.elapse(Duration::from_millis(1));
    assert_eq!(world.said(&signer.called("k2")).await, Err(Refusal::NoSuchKey));
    assert_eq!(world.provider.asked(), 3);
}

#[tokio::test]
async fn keys_that_rotate_are_known_as_soon_as_a_token_names_one() {
    let (old, new) = (Signer::es256("k1"), Signer::es256("k2"));
    let world = World::new(keys(&[&old])).await;
    assert_eq!(world.said(&old).await, Ok(()));
    world.provider.answers(keys(&[&old, &new]));
    world.advance(30);
    assert_eq!(world.said(&new).await, Ok(()));
    assert_eq!(world.said(&old).await, Ok(()));
    // The old one is withdrawn: after ten minutes it is found out, at the latest by the token after.
    world.provider.answers(keys(&[&new]));
    world.advance(600);
    assert_eq!(world.said(&old).await, Ok(()), "the set that is there still has it");
    world.provider.was_asked(3).await;
    // Unknown to both sets: waits for the one under way.
    assert_eq!(world.said(&Signer::es256("k3")).await, Err(Refusal::NoSuchKey));
    assert_eq!(world.said(&old).await, Err(Refusal::NoSuchKey));
    assert_eq!(world.said(&new).await, Ok(()));
}

#[tokio::test]
async fn an_unknown_key_id_has_the_issuer_asked_once_in_thirty_seconds() {
    let signer = Signer::es256("k1");
    let world = World::new(keys(&[&signer])).await;
    assert_eq!(world.said(&signer).await, Ok(()));
    for asked in 1..=3 {
        for n in 0..20 {
            assert_eq!(world.said(&signer.called(&format!("made-up-{n}"))).await, Err(Refusal::NoSuchKey));
        }
        world.clock.elapse(Duration::from_millis(29_999));
        assert_eq!(world.said(&signer.called("made-up")).await, Err(Refusal::NoSuchKey));
        assert_eq!(world.provider.asked(), asked);
        world.clock.elapse(Duration::from_millis(1));
        assert_eq!(world.said(&signer.called("made-up")).await, Err(Refusal::NoSuchKey));
        assert_eq!(world.provider.asked(), asked + 1);
    }
    assert_eq!(world.said(&signer).await, Ok(()));
}

#[tokio::test]
async fn an_issuer_that_lies_is_not_believed_and_its_last_good_keys_stay() {
    let signer = Signer::es256("k1");
    let set = json!({"keys": [signer.jwk()]}).to_string();
    let lies = [
        Answer::Text(200, "application/json", String::new()),
        Answer::Text(200, "application/json", "\u{0}garbage".to_owned()),
        Answer::Text(200, "application/json", "<html>sign in</html>".to_owned()),
        Answer::Text(200, "application/json", "{\"keys\":[]}".to_owned()),
        Answer::Text(200, "application/json", "{}".to_owned()),
        Answer::Text(200, "text/html", set.clone()),
        Answer::Text(200, "application/jsonp", set.clone()),
        Answer::Text(200, "", set.clone()),
        Answer::Text(201, "application/json", set.clone()),
        Answer::Text(404, "application/json", set.clone()),
        Answer::Text(500, "application/json", set.clone()),
        Answer::Text(200, "application/json", format!("{set}{}", " ".repeat(1 << 20))),
        Answer::Endless,
        Answer::Redirect(json!([signer.jwk()])),
    ];
    for (n, lie) in lies.iter().enumerate() {
        let world = World::new(lie.clone()).await;
        assert_eq!(world.said(&signer).await, Err(Refusal::NoKeySet), "{n}");
        assert_eq!(world.said(&signer).await, Err(Refusal::NoKeySet), "{n}");
        assert_eq!(world.provider.asked(), 1, "{n}: once in thirty seconds, and no redirect is followed");
        world.provider.answers(Answer::Text(200, "Application/JWK-Set+JSON; charset=utf-8", set.clone()));
        world.advance(30);
        assert_eq!(world.said(&signer).await, Ok(()), "{n}: it tells the truth again");
        world.provider.answers(lie.clone());
        world.advance(600);
        // Waits for the lie.
        assert_eq!(world.said(&signer.called("k2")).await, Err(Refusal::NoSuchKey), "{n}");
        assert_eq!(world.provider.asked(), 3, "{n}");
        assert_eq!(world.said(&signer).await, Ok(()), "{n}: the last good keys stay");
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_costs_nothing_and_is_believed_again_when_it_is_back() {
    let signer = Signer::es256("k1");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let rules = rules(&format!("jwks_url = \"http://{address}/keys\""));
    let clock = Arc::new(ManualClock::default());
    let issuers = Issuers::new(&rules, clock.clone());
    let token = signer.token(&service_account());
    assert_eq!(said(&issuers, &token).await, Err(Refusal::NoKeySet));
    let world = World::new(Answer::Text(503, "text/plain", String::new())).await;
    for _ in 0..3 {
        assert_eq!(world.said(&signer).await, Err(Refusal::NoKeySet));
        world.advance(29);
    }
    world.provider.answers(keys(&[&signer]));
    world.advance(30);
    assert_eq!(world.said(&signer).await, Ok(()));
}

#[tokio::test]
async fn an_issuer_that_hangs_holds_its_callers_for_a_bounded_time_and_is_asked_once() {
    let signer = Signer::es256("k1");
    for hangs in [Answer::Never, Answer::HeadAlone] {
        let limits = Limits { wait_max: SHORT, fetch_max: LONG, waiting_max: 64 };
        let world = World::with_limits(hangs.clone(), limits).await;
        let callers = (0..10).map(|_| world.said(&signer));
        assert!(join_all(callers).await.into_iter().all(|said| said == Err(Refusal::IssuerSlow)));
        // Still under way: no second one, whatever the clock says.
        world.advance(3_600);
        assert_eq!(world.said(&signer).await, Err(Refusal::IssuerSlow));
        assert_eq!(world.provider.asked(), 1);
        // A fetch ends by itself, and the next one may begin.
        let limits = Limits { wait_max: LONG, fetch_max: SHORT, waiting_max: 64 };
        let world = World::with_limits(hangs, limits).await;
        assert_eq!(world.said(&signer).await, Err(Refusal::NoKeySet));
        world.provider.answers(keys(&[&signer]));
        world.advance(30);
        assert_eq!(world.said(&signer).await, Ok(()));
    }
}

#[tokio::test]
async fn at_most_so_many_wait_for_one_issuer_and_others_are_not_held() {
    let signer = Signer::es256("k1");
    let limits = Limits { wait_max: LONG, fetch_max: LONG, waiting_max: Limits::STANDARD.waiting_max };
    let slow = IdentityProvider::start(Answer::Never).await;
    let quick = IdentityProvider::start(keys(&[&signer])).await;
    let mut both = rules(&format!("jwks_url = {:?}", slow.url));
    let mut other = rules(&format!("jwks_url = {:?}", quick.url));
    other[0].issuer = "https://other".to_owned();
    both.append(&mut other);
    let issuers = Arc::new(Issuers::with_limits(&both, Arc::new(ManualClock::default()), limits));
    let token = signer.token(&service_account());
    let waiting: Vec<_> = (0..64)
        .map(|_| {
            let (issuers, token) = (Arc::clone(&issuers), token.clone());
            tokio::spawn(async move { issuers.decide(&token).await.1 })
        })
        .collect();
    slow.was_asked(1).await;
    // Every one of the 64 has its place before the test goes on: they were made first, on one thread.
    assert_eq!(issuers.decide(&token).await.1.map(drop), Err(Refusal::IssuerBusy));
    let elsewhere = signer.token(&with("iss", json!("https://other")));
    assert!(issuers.decide(&elsewhere).await.1.is_ok(), "another issuer's token is not held");
    // One that goes away gives its place back.
    waiting[0].abort();
    while !waiting[0].is_finished() {
        tokio::task::yield_now().await;
    }
    let waits = issuers.decide(&token);
    assert!(tokio::time::timeout(SHORT, waits).await.is_err(), "it waits");
    assert_eq!(slow.asked(), 1);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_fetch_goes_on_when_its_caller_has_left() {
    let signer = Signer::es256("k1");
    let world = World::new(Answer::HeadAlone).await;
    let (issuers, token) = (Arc::clone(&world.issuers), signer.token(&service_account()));
    let caller = tokio::spawn(async move { issuers.decide(&token).await.1.map(drop) });
    world.provider.was_asked(1).await;
    caller.abort();
    world.advance(3_600);
    let limits = Limits { wait_max: SHORT, ..Limits::STANDARD };
    assert!(
        tokio::time::timeout(limits.wait_max, world.said(&signer)).await.is_err(),
        "it waits for the same one"
    );
    assert_eq!(world.provider.asked(), 1);
}

#[tokio::test]
async fn an_issuer_is_believed_only_when_its_own_authority_vouches_for_its_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::es256("k1");
    let provider = IdentityProvider::start_tls(keys(&[&signer]), dir.path()).await;
    let other = dir.path().join("other.crt");
    crate::test_certificate::write(2, &other, &dir.path().join("other.key"));
    let believed = async |ca_file: &str| {
        let rules = rules(&format!("jwks_url = {:?}\n{ca_file}", provider.url));
        let issuers = Issuers::new(&rules, Arc::new(ManualClock::default()));
        issuers.decide(&signer.token(&service_account())).await.1.map(drop)
    };
    assert_eq!(believed("").await, Err(Refusal::NoKeySet), "no authority of the system");
    assert_eq!(believed(&format!("ca_file = {other:?}")).await, Err(Refusal::NoKeySet));
    assert_eq!(believed("ca_file = \"/nowhere/ca.crt\"").await, Err(Refusal::NoKeySet));
    assert_eq!(provider.asked(), 0);
    let ca_file = dir.path().join("ca.crt");
    assert_eq!(believed(&format!("ca_file = {ca_file:?}")).await, Ok(()));
    assert_eq!(provider.asked(), 1);
}
