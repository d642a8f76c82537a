//! Strangers that verify one key's tokens for as long as a story takes, each with a cache of its own; and callers that
//! sign for them at a steady pace.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{CachedVerifier, Environment, PATIENCE, Seed, Verdict, Verifier, until};

/// From one new token to the next.
const PACE: Duration = Duration::from_millis(50);
/// Lives of tokens in seconds: at least, and at most.
const TTL_S: (usize, usize) = (2, 10);
/// Tokens that are kept to be verified again.
const KEPT_MAX: usize = 400;
/// `exp` is in whole seconds, so a token may end up to one earlier than its life says.
const ROUNDING: Duration = Duration::from_secs(1);

/// Verifiers and callers at work.
#[derive(Debug)]
pub struct Panel {
    stop: Arc<AtomicBool>,
    seats: Vec<Seat>,
    refused: Arc<Mutex<Vec<Unsigned>>>,
    tasks: JoinSet<anyhow::Result<()>>,
    began: Instant,
    cache: Duration,
}

/// A verifier's place.
#[derive(Debug)]
pub struct Seat {
    /// Who sits there.
    pub verifier: Verifier,
    jobs: mpsc::UnboundedSender<Job>,
    notes: Arc<Mutex<Notes>>,
}

/// What a verifier has seen.
#[derive(Debug, Default, Clone)]
pub struct Notes {
    /// Tokens that it verified, by their `kid`.
    pub verified: BTreeMap<String, u64>,
    /// Tokens that it did not.
    pub failed: Vec<Failed>,
    /// How often it has fetched the key set.
    pub fetches: u64,
    /// Tokens that had ended before it could be asked: the machine was slow.
    pub late: u64,
}

/// A token that was not verified.
#[derive(Debug, Clone)]
pub struct Failed {
    /// When the verdict came.
    pub at: Instant,
    /// Of which version it was.
    pub kid: String,
    /// In the library's words.
    pub why: String,
}

/// A call that signed nothing.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// When it was made.
    pub from: Instant,
    /// When it was refused.
    pub to: Instant,
    /// With what words.
    pub why: String,
}

#[derive(Debug)]
enum Job {
    Verify(Arc<Issued>),
    Probe(String, oneshot::Sender<Verdict>),
}

#[derive(Debug)]
struct Issued {
    token: String,
    kid: String,
    ends: Instant,
}

impl Panel {
    /// Seats PyJWT, jose and go-oidc, as far as they are installed, before the key set of all keys of `there`, and lets
    /// callers sign with the ES256 key `name` over `clients`, chosen by chance. Sets are kept as long as `there` allows.
    pub async fn start(
        there: &Environment,
        clients: Vec<Client>,
        name: &str,
        seed: Seed,
    ) -> anyhow::Result<Self> {
        let url = format!("{}/.well-known/jwks.json", there.http_addr);
        let cache = max_age(there).await?;
        let (mut tasks, mut seats) = (JoinSet::new(), vec![]);
        for verifier in [Verifier::PyJwt, Verifier::Jose, Verifier::GoOidc] {
            if !verifier.is_here()? {
                continue;
            }
            let program = verifier.start(&url, ISSUER, AUDIENCE, cache)?;
            let (jobs, todo) = mpsc::unbounded_channel();
            let notes = Arc::default();
            tasks.spawn(verify(program, todo, Arc::clone(&notes)));
            seats.push(Seat { verifier, jobs, notes });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let jobs = seats.iter().map(|seat| seat.jobs.clone()).collect();
        let refused = Arc::default();
        tasks.spawn(sign(clients, name.to_owned(), seed, jobs, Arc::clone(&stop), Arc::clone(&refused)));
        Ok(Self { stop, seats, refused, tasks, began: Instant::now(), cache })
    }

    /// How long a key set is kept.
    pub fn cache(&self) -> Duration {
        self.cache
    }

    /// Since when they are at work.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The verifiers.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Waits until every verifier's notes are as wanted. An error of a caller or a verifier ends it.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Notes) -> bool,
    ) -> anyhow::Result<()> {
        until(what, patience, async || {
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
                anyhow::bail!("a caller or a verifier has ended");
            }
            Ok(self.seats.iter().all(|seat| wanted(&seat.notes())).then_some(()))
        })
        .await
    }

    /// Waits until every verifier has verified `more` tokens of the version `kid`, from now on.
    pub async fn all_verify(&mut self, kid: &str, more: u64) -> anyhow::Result<()> {
        let count = |notes: &Notes| notes.verified.get(kid).copied().unwrap_or(0);
        let before = self.seats.iter().map(|seat| count(&seat.notes())).max().unwrap_or(0);
        self.until(&format!("all verify {kid}"), PATIENCE, |notes| count(notes) >= before + more).await
    }

    /// The calls that have signed nothing until now.
    pub fn unsigned(&self) -> Vec<Unsigned> {
        locked(&self.refused).clone()
    }

    /// Lets the callers end, and the verifiers when they have answered all.
    pub async fn stop(mut self) -> anyhow::Result<Vec<(Verifier, Notes)>> {
        self.stop.store(true, Ordering::Relaxed);
        let notes: Vec<_> = self.seats.into_iter().map(|seat| (seat.verifier, seat.notes)).collect();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(notes.into_iter().map(|(verifier, notes)| (verifier, locked(&notes).clone())).collect())
    }
}

impl Seat {
    /// What it has seen until now.
    pub fn notes(&self) -> Notes {
        locked(&self.notes).clone()
    }

    /// Asks about a token of the test's own.
    pub async fn ask(&self, token: &str) -> anyhow::Result<Verdict> {
        let (answer, verdict) = oneshot::channel();
        self.jobs.send(Job::Probe(token.to_owned(), answer)).ok().context("it has ended")?;
        verdict.await.context("it has ended")
    }
}

/// As the configurations of tests have it.
const ISSUER: &str = "https://kms.test";
const AUDIENCE: &str = "here";
const ALG: &str = "ES256";

/// Signs a token that lives for `ttl_s`, for the verifiers of a [`Panel`].
pub async fn sign_token(client: &Client, name: &str, ttl_s: i64) -> anyhow::Result<v1::SignJwtResponse> {
    let claims = serde_json::json!({"iss": ISSUER, "aud": AUDIENCE});
    let ttl = Some(prost_types::Duration { seconds: ttl_s, nanos: 0 });
    let claims_json = claims.to_string().into_bytes();
    let request = v1::SignJwtRequest { name: format!("keys/{name}"), claims_json, ttl, ..Default::default() };
    Ok(client.sign_jwt(request).await?)
}

async fn sign(
    clients: Vec<Client>,
    name: String,
    mut seed: Seed,
    jobs: Vec<mpsc::UnboundedSender<Job>>,
    stop: Arc<AtomicBool>,
    refused: Arc<Mutex<Vec<Unsigned>>>,
) -> anyhow::Result<()> {
    let mut kept: Vec<Arc<Issued>> = vec![];
    let mut tick = interval(PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let began = Instant::now();
        let ttl_s = TTL_S.0 + seed.below(TTL_S.1 - TTL_S.0 + 1);
        let client = &clients[seed.below(clients.len())];
        let signed = match sign_token(client, &name, i64::try_from(ttl_s)?).await {
            Ok(signed) => signed,
            Err(error) => {
                locked(&refused).push(Unsigned {
                    from: began,
                    to: Instant::now(),
                    why: format!("{error:#}"),
                });
                continue;
            }
        };
        let ends = began + Duration::from_secs(ttl_s as u64) - ROUNDING;
        let fresh = Arc::new(Issued { token: signed.token, kid: signed.kid, ends });
        kept.retain(|issued| issued.ends > began);
        ensure!(kept.len() < KEPT_MAX, "tokens are kept for ever");
        kept.push(Arc::clone(&fresh));
        // Each once when it is new; and one of any age, which may be as old as it can get.
        let again = Arc::clone(&kept[seed.below(kept.len())]);
        for jobs in &jobs {
            for issued in [&fresh, &again] {
                jobs.send(Job::Verify(Arc::clone(issued))).ok().context("a verifier has ended")?;
            }
        }
    }
    Ok(())
}

async fn verify(
    mut program: CachedVerifier,
    mut todo: mpsc::UnboundedReceiver<Job>,
    notes: Arc<Mutex<Notes>>,
) -> anyhow::Result<()> {
    while let Some(job) = todo.recv().await {
        match job {
            Job::Probe(token, answer) => {
                let found = program.verify(ALG, &token).await?;
                locked(&notes).fetches = found.fetches;
                // Whoever asked may have gone.
                let _ = answer.send(found.verdict);
            }
            Job::Verify(issued) => {
                if issued.ends <= Instant::now() {
                    locked(&notes).late += 1;
                    continue;
                }
                let found = program.verify(ALG, &issued.token).await?;
                let mut notes = locked(&notes);
                notes.fetches = found.fetches;
                let at = Instant::now();
                match found.verdict {
                    Verdict::Verified { .. } => *notes.verified.entry(issued.kid.clone()).or_default() += 1,
                    verdict => {
                        let why = format!("{verdict:?}");
                        let ended = issued.ends <= at && why.to_lowercase().contains("expired");
                        match ended {
                            true => notes.late += 1,
                            false => notes.failed.push(Failed { at, kid: issued.kid.clone(), why }),
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// How long a verifier may keep the set that it is served now.
async fn max_age(there: &Environment) -> anyhow::Result<Duration> {
    let answer = there.get("/.well-known/jwks.json").await?.error_for_status()?;
    let cached = answer.headers().get("cache-control").context("no Cache-Control")?.to_str()?;
    let seconds = cached.split("max-age=").nth(1).context("no max-age")?;
    let seconds = seconds.split(',').next().unwrap_or_default().trim().parse()?;
    ensure!(seconds > 0, "a set that nobody may keep shows nothing");
    Ok(Duration::from_secs(seconds))
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
