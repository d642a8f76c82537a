//! News of commits: early when they come, and made good when they do not.

use std::time::{Duration, Instant};

use kms_core::Store as _;
use tokio::time::timeout;

use crate::{PATIENCE, World, beat, insert};

/// Far more than news need.
const AT_MOST: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_wakes_the_others_long_before_they_would_look() {
    let world = World::new();
    let (one, other) = (world.open().await, world.open().await);
    let mut listening_since = "-infinity".to_owned();
    for round in ["at first", "after both lost their connections"] {
        let listening = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND query ILIKE 'LISTEN%' AND backend_start > '{listening_since}'"
        );
        world.until(&listening, "2").await;
        let known = other.check().await.expect("it works");
        let waits = timeout(PATIENCE, other.changed(known, AT_MOST));
        let name = format!("news-{}", known.0);
        let (woken, made) = tokio::join!(waits, one.commit(insert(&name)));
        woken.unwrap_or_else(|_| panic!("{round}: nobody was woken"));
        let pulse = other.pulse(beat("other", known)).await.expect("a pulse");
        assert_eq!(pulse.generation, made.expect("it is written"), "{round}: woken without a reason");
        // Who is behind need not wait for news that have come.
        timeout(PATIENCE, other.changed(known, AT_MOST)).await.expect("it was heard of");

        listening_since = world.sql("SELECT clock_timestamp()");
        world.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query ILIKE 'LISTEN%'",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_which_no_news_came_is_found_by_looking() {
    let world = World::new();
    let store = world.open().await;
    let known = store.commit(insert("changed")).await.expect("it is written");
    // As a replica does that dies between its COMMIT and its NOTIFY.
    world.sql(
        "BEGIN; UPDATE generation SET value = value + 1;
         UPDATE keys SET owner = 'another', revision = revision + 1, generation = (SELECT value FROM generation);
         COMMIT;",
    );
    let (at_most, began) = (Duration::from_millis(300), Instant::now());
    timeout(PATIENCE, store.changed(known, at_most)).await.expect("it gives up");
    assert!(began.elapsed() >= at_most, "there were news: this shows nothing");
    let pulse = store.pulse(beat("store", known)).await.expect("a pulse");
    assert_eq!(pulse.generation.0, known.0 + 1);
    let snapshot = store.load(Some(known)).await.expect("it reads");
    assert_eq!(snapshot.generation, pulse.generation);
    let owners: Vec<_> = snapshot.keys.iter().map(|(key, _)| key.owner.as_str()).collect();
    assert_eq!(owners, ["another"]);
}
