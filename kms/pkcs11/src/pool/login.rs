//! Leave to call C_Login, and what came of it: the pool's side of a PIN latch.
//!
//! A latch may be slow (a durable write, another server that is trying), so one task talks to it, in order, and the
//! director hears of it as of everything else. An outcome that could not be kept is kept before anything else is
//! asked: this process must not forget a try either.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use kms_core::pin_latch::Outcome;
use tokio::{sync::mpsc, time::sleep};

use super::events::Event;
use crate::wire::{Refusal, RefusalKind};

/// How often an outcome is told again that could not be kept.
const PAY_EVERY: Duration = Duration::from_secs(1);

/// What a latch answers, later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Remembers tries of the PIN, longer than a process lives. Asked and told in turns, never at once.
pub trait Latch: Send + Sync + 'static {
    /// Asks for leave to call C_Login once on the token of this serial number. To be answered before
    /// [`super::Config::startup_timeout`], while which the worker waits under the start-up lock. A refusal of kind
    /// [`RefusalKind::Pin`] is the end of all tries.
    fn take<'a>(&'a self, token_serial: &'a str) -> Later<'a, Result<(), Refusal>>;

    /// Told once after each leave. Answers why nobody may try any more, if that is what follows. An error, for
    /// operators, when it could not be kept; then it is told again.
    fn settle<'a>(
        &'a self,
        token_serial: &'a str,
        outcome: &'a Outcome,
    ) -> Later<'a, Result<Option<String>, String>>;
}

/// The latch of a pool, which clones share. By default one that forgets with the process.
#[derive(Clone)]
pub struct PoolLatch(pub Arc<dyn Latch>);

/// Keeps nothing: any try in doubt ends all tries of this process, and of no other.
struct OfThisProcess;

/// What the director does once an outcome is kept.
pub(super) enum After {
    /// Lets it leave.
    Refuse(Refusal),
    /// Buries it. With its exit status.
    Bury(String),
    /// Goes on with it.
    Nothing,
}

/// The way to the task that talks to the latch.
pub(super) struct Logins(mpsc::UnboundedSender<Message>);

/// At most two for each worker that starts, one after another.
enum Message {
    Take { number: u16, pid: u32, token_serial: String },
    Settle { number: u16, pid: u32, token_serial: String, outcome: Outcome, after: After },
}

impl Logins {
    /// The way to the task, and the task, which ends when the way is dropped.
    pub(super) fn new(
        PoolLatch(latch): PoolLatch,
        events: mpsc::Sender<Event>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, messages) = mpsc::unbounded_channel();
        (Self(sender), run(latch, messages, events))
    }

    /// Asks for leave. [`Event::Latch`] follows.
    pub(super) fn take(&self, number: u16, pid: u32, token_serial: String) {
        self.send(Message::Take { number, pid, token_serial });
    }

    /// Tells what came of it. [`Event::Settled`] follows.
    pub(super) fn settle(&self, number: u16, pid: u32, token_serial: String, outcome: Outcome, after: After) {
        self.send(Message::Settle { number, pid, token_serial, outcome, after });
    }

    fn send(&self, message: Message) {
        // The task lives as long as the director.
        let _ = self.0.send(message);
    }
}

async fn run(
    latch: Arc<dyn Latch>,
    mut messages: mpsc::UnboundedReceiver<Message>,
    events: mpsc::Sender<Event>,
) {
    let mut owed = None;
    // One worker logs in at a time, whatever the locks of the workers say.
    let mut open = false;
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = sleep(PAY_EVERY), if owed.is_some() => {
                let _ = pay(&*latch, &mut owed).await;
                continue;
            }
        };
        let event = match message {
            None => return,
            Some(Message::Take { number, pid, token_serial }) => {
                let passing = |text| Err(Refusal { kind: RefusalKind::Passing, text });
                let verdict = match pay(&*latch, &mut owed).await {
                    _ if open => passing("another HSM worker is logging in at this moment".to_owned()),
                    Ok(()) => latch.take(&token_serial).await,
                    Err(text) => passing(text),
                };
                open |= verdict.is_ok();
                Event::Latch { number, pid, token_serial, verdict }
            }
            Some(Message::Settle { number, pid, token_serial, outcome, after }) => {
                open = false;
                let settled = latch.settle(&token_serial, &outcome).await;
                let refused = settled.unwrap_or_else(|error| {
                    tracing::error!(error, "what came of a login could not be kept; it will be tried again");
                    // A death may be worth another try, as the latch will say: until it is kept nobody tries anyway.
                    let refused =
                        if let Outcome::Refused(text) = &outcome { Some(text.clone()) } else { None };
                    owed = Some((token_serial, outcome));
                    refused
                });
                Event::Settled { number, pid, after, refused }
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Keeps the outcome that could not be kept before.
async fn pay(latch: &dyn Latch, owed: &mut Option<(String, Outcome)>) -> Result<(), String> {
    let Some((token_serial, outcome)) = owed else { return Ok(()) };
    latch.settle(token_serial, outcome).await?;
    *owed = None;
    Ok(())
}

/// What follows where nothing else is known.
fn in_doubt(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Succeeded | Outcome::NotTried => None,
        Outcome::Refused(text) => Some(text.clone()),
        Outcome::Died(status) => Some(format!(
            "an HSM worker died while logging in ({status}), which may have spent a PIN try; not tried again: \
             look at the token, then log in once with `kms hsm login` and restart kms"
        )),
    }
}

impl Latch for OfThisProcess {
    fn take<'a>(&'a self, _: &'a str) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn settle<'a>(&'a self, _: &'a str, outcome: &'a Outcome) -> Later<'a, Result<Option<String>, String>> {
        Box::pin(async { Ok(in_doubt(outcome)) })
    }
}

impl Default for PoolLatch {
    fn default() -> Self {
        Self(Arc::new(OfThisProcess))
    }
}

impl fmt::Debug for PoolLatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolLatch(..)")
    }
}
