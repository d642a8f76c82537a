//! News of commits, by LISTEN and NOTIFY. They only wake a replica earlier than its next beat: all may be lost.

use std::{sync::Arc, time::Duration};

use kms_core::store::Generation;
use sqlx::{PgPool, postgres::PgListener};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::open::{CONNECT_MAX, Door};

const CHANNEL: &str = "kms_commits";
/// After LISTEN was lost.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Wakes whoever waits.
#[derive(Debug)]
pub(super) struct News {
    /// The latest generation that was heard of here.
    heard: watch::Sender<u64>,
    _listener: JoinSet<()>,
}

impl News {
    /// Listens until it is dropped.
    pub(super) fn follow(door: Arc<Door>) -> Self {
        let heard = watch::Sender::new(0);
        let mut listener = JoinSet::new();
        listener.spawn(listen(door, heard.clone()));
        Self { heard, _listener: listener }
    }

    /// Tells the others, if that can be done, and who waits here.
    pub(super) fn tell(&self, generation: Generation, pool: &PgPool) {
        hear(&self.heard, generation.0);
        let pool = pool.clone();
        // Outside the transaction: engines that cannot do it must be able to commit.
        tokio::spawn(async move {
            let notify = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(generation.0.to_string());
            if let Ok(Err(error)) = timeout(CONNECT_MAX, notify.execute(&pool)).await {
                tracing::debug!(%error, "the others were not told of a commit; they find out by themselves");
            }
        });
    }

    /// Until a generation past `known` was heard of, or `at_most`.
    pub(super) async fn wait(&self, known: Generation, at_most: Duration) {
        let mut heard = self.heard.subscribe();
        let _ = timeout(at_most, heard.wait_for(|heard| *heard > known.0)).await;
    }
}

async fn listen(door: Arc<Door>, heard: watch::Sender<u64>) {
    let mut told = false;
    loop {
        if let Err(error) = listen_once(&door, &heard).await
            && !std::mem::replace(&mut told, true)
        {
            tracing::info!(%error, "no news of commits from the database; they are noticed with the next beat");
        }
        sleep(RETRY_AFTER).await;
    }
}

async fn listen_once(door: &Door, heard: &watch::Sender<u64>) -> Result<(), sqlx::Error> {
    let pool = door.pool_of_one();
    let mut listener = timeout(CONNECT_MAX, async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    })
    .await
    .unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    while let Some(news) = listener.try_recv().await? {
        // Whatever it says: it is a reason to look, at most.
        if let Ok(generation) = news.payload().parse() {
            hear(heard, generation);
        }
    }
    Ok(())
}

fn hear(heard: &watch::Sender<u64>, generation: u64) {
    heard.send_if_modified(|latest| {
        let newer = generation > *latest;
        *latest = generation.max(*latest);
        newer
    });
}
