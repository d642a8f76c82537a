//! Rotation that no verifier notices: PyJWT, jose and go-oidc verify throughout, each with its own cache of the key set,
//! while versions come and go by the key's period. Then what is announced to be noticed, and for how long it is: an
//! emergency, and a revocation.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use kms_client::Client;
use kms_tests::{
    Environment, Failed, Fleet, Notes, PATIENCE, Panel, Plan, Promise, Unsigned, Verdict, Verifier,
    sign_token, until,
};
use serde_json::Value;

const KEY: &str = "rotating";
/// Beyond a verifier's cache: how long a token may wait for its verdict, and a fetch may take, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);
/// Longest from one takeover to the next, with periods as short as these.
const TAKEOVER_MAX: Duration = Duration::from_secs(100);
/// Tokens after which a verifier counts as good.
const ENOUGH: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn no_verifier_of_three_replicas_notices_a_rotation_or_more_than_an_emergency_announces()
-> anyhow::Result<()> {
    let promise = Promise::begin(5, "rotation")?;
    // All of them before there is a key: a server that finds one must assume that its sets are kept for the longest.
    let fleet = Fleet::start(plan()?, 3).await?;
    let mut clients = vec![];
    for replica in &fleet.replicas {
        clients.push(replica.environment()?.client().await?);
    }
    story(promise, &fleet, clients, "3 replicas, PostgreSQL").await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_verifier_of_one_server_notices_a_rotation_or_more_than_an_emergency_announces()
-> anyhow::Result<()> {
    let promise = Promise::begin(5, "rotation")?;
    let plan = plan()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    let clients = vec![server.client().await?];
    story(promise, &server, clients, "1 server, SQLite").await
}

fn plan() -> anyhow::Result<Plan> {
    let mut plan = Plan::new()?;
    plan.more.push(("keys", "jwks_max_age = \"10s\"".into()));
    Ok(plan)
}

async fn story(
    mut promise: Promise,
    there: &Environment,
    clients: Vec<Client>,
    servers: &str,
) -> anyhow::Result<()> {
    // In the full figure with room for an emergency among the eight versions that may be published.
    let period = format!("{}s", Promise::count(20, 60));
    let create = ["keys", "create", KEY, "--algorithm", "ES256", "--rotation-period", &period];
    let create = create.into_iter().chain(["--publish-lead", "10s", "--max-token-ttl", "10s"]);
    there.kms(create).await?.text()?;
    let mut panel = Panel::start(there, clients.clone(), KEY, promise.seed.fork()).await?;

    let rotations = Promise::count(2, 10);
    for rotation in 1..=rotations {
        Promise::progress("rotations", rotation, rotations);
        panel.until("the next takes over", TAKEOVER_MAX, |notes| notes.verified.len() > rotation).await?;
    }
    let enough = |notes: &Notes| notes.verified.values().filter(|count| **count >= ENOUGH).count();
    panel.until("the last one is verified for a while", PATIENCE, |notes| enough(notes) > rotations).await?;
    let fetches = fetched_no_more_than_allowed(&panel)?;
    for seat in panel.seats() {
        ensure!(seat.notes().failed.is_empty(), "{}: {:#?}", seat.verifier.name(), seat.notes().failed);
    }

    let emergency = emergency(there, &mut panel).await?;
    let revocation = revocation(there, &clients, &mut panel, &emergency.kid).await?;
    let unsigned = panel.unsigned();

    // Between a revocation and the birth of the successor nothing signs, and nothing else is refused to callers.
    let in_gap = |call: &&Unsigned| {
        let inside = call.to >= revocation.revoked.from && call.from <= revocation.returned;
        inside && call.why.contains("no active version")
    };
    let (gap, refused): (Vec<_>, Vec<_>) = unsigned.iter().partition(in_gap);
    ensure!(refused.is_empty(), "callers were refused: {refused:#?}");
    let gap =
        gap.iter().map(|call| call.to).max().map(|last| last - revocation.revoked.from).unwrap_or_default();

    let announced = [&emergency, &revocation.successor, &revocation.revoked];
    let (mut verified, mut late) = (0, 0);
    for (verifier, notes) in panel.stop().await? {
        let surprises: Vec<_> =
            notes.failed.iter().filter(|failed| !announced.iter().any(|a| a.covers(failed))).collect();
        ensure!(surprises.is_empty(), "{}: {surprises:#?}", verifier.name());
        verified += notes.verified.values().sum::<u64>();
        late += notes.late;
    }
    ensure!(late * 20 < verified, "too slow to show anything: {late} tokens ended before they were verified");
    promise.kept(
        format!("{rotations} scheduled rotations, an emergency and a revocation under PyJWT, jose, go-oidc; {servers}"),
        format!(
            "{verified} verifications, 0 failures but those announced; key sets fetched {fetches}; the emergency was \
             noticed for {}; the revoked version believed for {}; nothing signed for {gap:.1?} until its successor was born",
            spans(&emergency.took),
            spans(&revocation.revoked.took),
        ),
    );
    Ok(())
}

/// What an operator is told to expect: failures of tokens of one version, in a span; and how long they were seen.
struct Announced {
    kid: String,
    from: Instant,
    to: Option<Instant>,
    took: Vec<(Verifier, Duration)>,
}

struct Revocation {
    returned: Instant,
    revoked: Announced,
    successor: Announced,
}

impl Announced {
    fn covers(&self, failed: &Failed) -> bool {
        failed.kid == self.kid && failed.at >= self.from && self.to.is_none_or(|to| failed.at <= to)
    }
}

/// Without the lead: verifiers refuse the new version until they have fetched it.
async fn emergency(there: &Environment, panel: &mut Panel) -> anyhow::Result<Announced> {
    // A version that waits already would only have to take over, and everybody knows it.
    there
        .kms(["keys", "update", KEY, "--rotation-period", "never", "--max-token-ttl", "10m"])
        .await?
        .text()?;
    until("no version waits for its time", TAKEOVER_MAX, async || {
        let versions = versions(there).await?;
        Ok(versions.iter().all(|version| version["state"] != "pre_activation").then_some(()))
    })
    .await?;

    let from = Instant::now();
    let output = there.kms(["keys", "rotate", KEY, "--emergency", "-o", "json"]).await?;
    let to = Instant::now() + panel.cache() + SLACK;
    let kid = text(&output.json()?, "kid")?;
    let says = output.stderr.contains("Verifiers refuse its tokens until they have fetched");
    ensure!(says, "it does not say what it breaks: {output:?}");
    panel.all_verify(&kid, ENOUGH).await?;
    let took = refused_for(panel, &kid, from);
    Ok(Announced { kid, from, to: Some(to), took })
}

/// Tokens of the revoked version are refused as soon as a cache is over; its successor signs at once.
async fn revocation(
    there: &Environment,
    clients: &[Client],
    panel: &mut Panel,
    kid: &str,
) -> anyhow::Result<Revocation> {
    let doomed = sign_token(&clients[0], KEY, 600).await?;
    ensure!(doomed.kid == kid, "{doomed:?}");
    for seat in panel.seats() {
        let verdict = seat.ask(&doomed.token).await?;
        ensure!(matches!(verdict, Verdict::Verified { .. }), "{}: {verdict:?}", seat.verifier.name());
    }
    let number = versions(there).await?.iter().find(|version| version["kid"] == kid).context(KEY)?["number"]
        .to_string();
    let from = Instant::now();
    let revoke = ["keys", "revoke", KEY, "--version", &number, "--reason", "a story", "-o", "json"];
    let output = there.kms(revoke).await?;
    let returned = Instant::now();
    ensure!(output.json()?["state"] == "compromised", "{output:?}");
    ensure!(output.stderr.contains("is out of the JWKS and signs nothing more"), "{output:?}");

    let mut successors = BTreeSet::new();
    for client in clients {
        successors.insert(sign_token(client, KEY, 60).await?.kid);
    }
    let successor = successors.pop_first().filter(|successor| successor != kid).context("it signs on")?;
    ensure!(successors.is_empty(), "servers disagree about who signs: {successor} and {successors:?}");

    let limit = panel.cache() + SLACK;
    let asked = panel.seats().iter().map(async |seat| {
        until("the revoked version is refused", limit, async || {
            let verdict = seat.ask(&doomed.token).await?;
            Ok((!matches!(verdict, Verdict::Verified { .. })).then(|| (seat.verifier, returned.elapsed())))
        })
        .await
        .with_context(|| seat.verifier.name())
    });
    let took = try_join_all(asked).await?;
    panel.all_verify(&successor, ENOUGH).await?;
    for seat in panel.seats() {
        let verdict = seat.ask(&doomed.token).await?;
        ensure!(!matches!(verdict, Verdict::Verified { .. }), "{} believes it again", seat.verifier.name());
    }
    let revoked = Announced { kid: kid.to_owned(), from, to: None, took };
    let took = refused_for(panel, &successor, from);
    let successor = Announced { kid: successor, from, to: Some(returned + limit), took };
    Ok(Revocation { returned, revoked, successor })
}

/// A cache is there to spare us requests: no verifier comes more often than its own lets it.
fn fetched_no_more_than_allowed(panel: &Panel) -> anyhow::Result<String> {
    let mut fetched = vec![];
    for seat in panel.seats() {
        let notes = seat.notes();
        let allowed = match seat.verifier {
            // At the first token of a version that it does not know.
            Verifier::GoOidc => notes.verified.len() as u64,
            _ => panel.began().elapsed().as_secs() / panel.cache().as_secs() + 1,
        };
        let (name, fetches) = (seat.verifier.name(), notes.fetches);
        ensure!(fetches <= allowed, "{name} fetched {fetches} times, and may do so {allowed} times");
        fetched.push(format!("{fetches} times by {name}"));
    }
    Ok(fetched.join(", "))
}

/// How long after `from` the last token of that version was refused.
fn refused_for(panel: &Panel, kid: &str, from: Instant) -> Vec<(Verifier, Duration)> {
    let last = |notes: &Notes| notes.failed.iter().rfind(|failed| failed.kid == kid).map(|failed| failed.at);
    let span = |notes: &Notes| last(notes).map_or(Duration::ZERO, |at| at.saturating_duration_since(from));
    panel.seats().iter().map(|seat| (seat.verifier, span(&seat.notes()))).collect()
}

fn spans(took: &[(Verifier, Duration)]) -> String {
    let spans: Vec<_> =
        took.iter().map(|(verifier, took)| format!("{took:.1?} by {}", verifier.name())).collect();
    spans.join(", ")
}

async fn versions(there: &Environment) -> anyhow::Result<Vec<Value>> {
    let versions = there.kms(["keys", "versions", KEY, "-o", "json"]).await?.json()?;
    Ok(versions.as_array().context("a list")?.clone())
}

fn text(object: &Value, member: &str) -> anyhow::Result<String> {
    Ok(object[member].as_str().with_context(|| format!("no {member} in {object}"))?.to_owned())
}
