//! The PIN latch behind the HSM pool: core's rules over our store, and the waiting that core does not do.

use std::time::Duration;

use kms_core::{
    Clock as _, Failpoint,
    pin_latch::{Holder, Others, Outcome, PinLatch, Taken},
    replica::ReplicaId,
    time::SignedDuration,
};
use kms_pkcs11::{
    pool::{Latch, Later},
    wire::{Refusal, RefusalKind},
};
use kms_store::AnyStore;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::clock::SystemClock;

/// A process whose login has lasted for so many start-up timeouts is dead, as others see it.
const LOGIN_TIMEOUTS: u32 = 4;
/// How long a worker waits for another server's login before it leaves and is started again. Less than the pool's
/// patience with a worker: a worker that waits holds the start-up lock of this host.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The latches of one PIN generation, in the store.
pub(crate) struct DurableLatch {
    latch: PinLatch<AnyStore>,
    door: watch::Sender<Door>,
}

/// What this process does with the latch.
#[derive(Debug, Clone, Copy, Default)]
struct Door {
    /// A leave was given, and what came of it is not written yet.
    trying: bool,
    /// No leave is given any more.
    closed: bool,
}

/// Who else may hold a latch of `store`, when a start-up may take `startup_timeout`.
pub fn others(store: &AnyStore, startup_timeout: Duration) -> anyhow::Result<Others> {
    Ok(match store {
        // The store's lock is ours: whoever else stands in a row is dead.
        AnyStore::Sqlite(_) => Others::Dead,
        AnyStore::Postgres(_) => {
            Others::AliveFor(SignedDuration::try_from(startup_timeout * LOGIN_TIMEOUTS)?)
        }
    })
}

impl DurableLatch {
    /// The latches of `pin_generation`, for this process. `startup_timeout` is the
    /// configuration's.
    pub(crate) fn new(
        store: AnyStore,
        pin_generation: u32,
        replica: &ReplicaId,
        startup_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let others = others(&store, startup_timeout)?;
        let latch = PinLatch::new(store, pin_generation, Holder::new(replica.as_str()), others);
        Ok(Self { latch, door: watch::Sender::default() })
    }

    /// Gives no leave any more, and waits, at most for `patience`, until it is written what came of the last.
    pub(crate) async fn close(&self, patience: Duration) {
        self.door.send_modify(|door| door.closed = true);
        let mut door = self.door.subscribe();
        if timeout(patience, door.wait_for(|door| !door.trying)).await.is_err() {
            tracing::error!(
                "an HSM worker is still logging in; what comes of it will not be known to the next start"
            );
        }
    }

    async fn leave(&self, token_serial: &str) -> Result<(), Refusal> {
        let until = Instant::now() + WAIT_MAX;
        loop {
            match self.latch.take(token_serial, SystemClock.now()).await {
                Ok(Taken::Yes) => {
                    Failpoint::LoginBegun.reached();
                    return Ok(());
                }
                Ok(Taken::No(text)) => return Err(Refusal { kind: RefusalKind::Pin, text }),
                Ok(Taken::Busy(_)) if Instant::now() < until => sleep(LOOK_EVERY).await,
                Ok(Taken::Busy(other)) => {
                    return passing(format!("{other} to log in to the token; waiting for it"));
                }
                Err(fault) => {
                    return passing(format!("no login without a record that the PIN is tried: {fault}"));
                }
            }
        }
    }
}

impl Latch for DurableLatch {
    fn take<'a>(&'a self, token_serial: &'a str) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let open = self.door.send_if_modified(|door| {
                door.trying = !door.closed;
                door.trying
            });
            if !open {
                return passing("the server is ending".to_owned());
            }
            let leave = self.leave(token_serial).await;
            self.door.send_modify(|door| door.trying = leave.is_ok());
            leave
        })
    }

    fn settle<'a>(
        &'a self,
        token_serial: &'a str,
        outcome: &'a Outcome,
    ) -> Later<'a, Result<Option<String>, String>> {
        Box::pin(async move {
            Failpoint::LoginEnded.reached();
            let settled = self.latch.settle(token_serial, outcome, SystemClock.now()).await;
            let refused = settled.map_err(|fault| fault.to_string())?;
            Failpoint::LoginSettled.reached();
            self.door.send_modify(|door| door.trying = false);
            Ok(refused)
        })
    }
}

fn passing(text: String) -> Result<(), Refusal> {
    Err(Refusal { kind: RefusalKind::Passing, text })
}
