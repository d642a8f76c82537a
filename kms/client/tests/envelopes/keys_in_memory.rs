//! How often the service is asked for data keys, and how long they stay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::future;
use kms_client::{
    Kind,
    envelope::{Envelopes, Error, Policy},
};
use tonic::Status;

use crate::{
    context, envelopes,
    memory::{KEY, Memory},
};

/// A clock that moves when it is told to, in seconds.
fn with_clock(kms: &Memory, policy: Policy) -> (Envelopes<Memory>, Arc<AtomicU64>) {
    let (start, passed) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let seconds = Arc::clone(&passed);
    let clock = move || start + Duration::from_secs(seconds.load(Relaxed));
    (Envelopes::with_clock(kms.clone(), KEY, policy, clock), passed)
}

#[tokio::test]
async fn one_data_key_seals_a_thousand_messages_and_not_one_more() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    for _ in 0..10_000 {
        envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    }
    assert_eq!(kms.generated.load(Relaxed), 10);
    envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    assert_eq!(kms.generated.load(Relaxed), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_bound_holds_when_many_seal_at_once() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let seals = (0..8).map(|_| {
        let envelopes = envelopes.clone();
        tokio::spawn(async move {
            for _ in 0..500 {
                envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
            }
        })
    });
    for seal in seals.collect::<Vec<_>>() {
        seal.await.expect("no panic");
    }
    assert_eq!(kms.generated.load(Relaxed), 4);
}

#[tokio::test]
async fn more_who_wait_than_a_data_key_may_seal_get_another() {
    let kms = Memory::new();
    let policy = Policy { messages_max: 3, ..Policy::default() };
    let envelopes = Envelopes::new(kms.clone(), KEY, policy);
    let context = context("acme", "a");
    let seals = (0..10).map(|_| envelopes.seal(&context, b"small"));
    future::try_join_all(seals).await.expect("all are sealed");
    assert_eq!(kms.generated.load(Relaxed), 4);
}

#[tokio::test]
async fn a_data_key_seals_so_many_bytes_and_a_longer_message_has_one_for_itself() {
    let kms = Memory::new();
    let policy = Policy { bytes_max: 100, ..Policy::default() };
    let envelopes = Envelopes::new(kms.clone(), KEY, policy);
    for (len, calls) in [(60, 1), (40, 1), (1, 2), (100, 3), (1_000, 4), (1, 5)] {
        envelopes.seal(&context("acme", "a"), &vec![0; len]).await.expect("it is sealed");
        assert_eq!(kms.generated.load(Relaxed), calls, "at {len} bytes");
    }
}

#[tokio::test]
async fn another_key_context_has_another_data_key_and_another_local_one_has_not() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    for (tenant, path, calls) in [("acme", "a", 1), ("acme", "b", 1), ("umbrella", "a", 2), ("acme", "c", 2)]
    {
        envelopes.seal(&context(tenant, path), b"small").await.expect("it is sealed");
        assert_eq!(kms.generated.load(Relaxed), calls, "at {tenant} {path}");
    }
}

#[tokio::test]
async fn a_data_key_that_is_too_old_seals_and_opens_no_more() {
    let kms = Memory::new();
    let (envelopes, seconds) = with_clock(&kms, Policy::default());
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    for (at, calls) in [(0, 1), (299, 1), (300, 2), (599, 2), (600, 3)] {
        seconds.store(at, Relaxed);
        envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
        envelopes.open(&context("acme", "a"), &sealed).await.expect("it opens");
        let asked = (kms.generated.load(Relaxed), kms.unwrapped.load(Relaxed));
        assert_eq!(asked, (calls, calls), "at {at} s");
    }
}

#[tokio::test]
async fn without_an_age_the_service_is_asked_each_time() {
    let kms = Memory::new();
    let envelopes = Envelopes::new(kms.clone(), KEY, Policy { age_max: Duration::ZERO, ..Policy::default() });
    for calls in 1..=3 {
        let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
        envelopes.open(&context("acme", "a"), &sealed).await.expect("it opens");
        assert_eq!((kms.generated.load(Relaxed), kms.unwrapped.load(Relaxed)), (calls, calls));
    }
}

#[tokio::test]
async fn a_hundred_opens_at_once_of_one_envelope_cost_one_call() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let context = context("acme", "a");
    let sealed = envelopes.seal(&context, b"small").await.expect("it is sealed");
    kms.answers.forget_permits(usize::MAX);
    let mut opens = future::try_join_all((0..100).map(|_| envelopes.open(&context, &sealed)));
    assert!(futures::poll!(&mut opens).is_pending(), "nobody has answered yet");
    kms.answers.add_permits(100);
    for opened in opens.await.expect("all open") {
        assert_eq!(opened.expose_secret(), b"small");
    }
    assert_eq!(kms.unwrapped.load(Relaxed), 1);
}

#[tokio::test]
async fn a_failure_is_that_of_all_who_wait_for_it_and_of_nobody_after() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let context = context("acme", "a");
    let sealed = envelopes.seal(&context, b"small").await.expect("it is sealed");
    kms.fails.store(true, Relaxed);
    kms.answers.forget_permits(usize::MAX);
    let mut opens = future::join_all((0..100).map(|_| envelopes.open(&context, &sealed)));
    assert!(futures::poll!(&mut opens).is_pending(), "nobody has answered yet");
    kms.answers.add_permits(100);
    for opened in opens.await {
        let error = opened.expect_err("the service refuses");
        assert_eq!(error.as_kms().expect("it is the service's").kind(), Kind::PermissionDenied);
    }
    assert_eq!(kms.unwrapped.load(Relaxed), 1);
    kms.fails.store(false, Relaxed);
    envelopes.open(&context, &sealed).await.expect("it opens now");
}

#[tokio::test]
async fn who_came_later_does_not_inherit_the_end_of_a_strangers_time() {
    for lost in [Status::unavailable("away"), Status::deadline_exceeded("too late")] {
        let kms = Memory::new();
        let envelopes = envelopes(&kms);
        let context = context("acme", "a");
        let sealed = envelopes.seal(&context, b"small").await.expect("it is sealed");
        kms.answers.forget_permits(usize::MAX);
        let mut opens = future::join_all((0..100).map(|_| envelopes.open(&context, &sealed)));
        assert!(futures::poll!(&mut opens).is_pending(), "nobody has answered yet");
        kms.next_answers.lock().expect("unpoisoned").push_back(Err(lost));
        kms.answers.add_permits(100);
        let failed = opens.await.iter().filter(|opened| opened.is_err()).count();
        assert_eq!((failed, kms.unwrapped.load(Relaxed)), (1, 2));
    }
}

#[tokio::test]
async fn a_call_that_all_have_given_up_is_made_anew() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let context = context("acme", "a");
    let sealed = envelopes.seal(&context, b"small").await.expect("it is sealed");
    kms.answers.forget_permits(usize::MAX);
    let mut given_up = Box::pin(envelopes.open(&context, &sealed));
    assert!(futures::poll!(&mut given_up).is_pending());
    drop(given_up);
    kms.answers.add_permits(1);
    envelopes.open(&context, &sealed).await.expect("it opens");
    assert_eq!(kms.unwrapped.load(Relaxed), 2);
}

#[tokio::test]
async fn the_data_key_used_longest_ago_gives_way() {
    let kms = Memory::new();
    let policy = Policy { opening_keys_max: 2, messages_max: 1, ..Policy::default() };
    let envelopes = Envelopes::new(kms.clone(), KEY, policy);
    let mut sealed = Vec::new();
    for tenant in ["a", "b", "c"] {
        sealed.push(envelopes.seal(&context(tenant, ""), b"small").await.expect("it is sealed"));
    }
    // Which is opened, and how many calls that has cost by then.
    for (which, calls) in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)] {
        envelopes.open(&context(["a", "b", "c"][which], ""), &sealed[which]).await.expect("it opens");
        assert_eq!(kms.unwrapped.load(Relaxed), calls, "at {which}");
    }
}

#[tokio::test]
async fn another_context_opens_nothing_and_does_not_even_ask() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    let error = envelopes.open(&context("umbrella", "a"), &sealed).await.expect_err("another tenant");
    assert!(matches!(error, Error::NotOpened), "{error}");
    assert_eq!(kms.unwrapped.load(Relaxed), 0);

    envelopes.open(&context("acme", "a"), &sealed).await.expect("it opens");
    for (tenant, path) in [("umbrella", "a"), ("acme", "b")] {
        let error = envelopes.open(&context(tenant, path), &sealed).await.expect_err("with the key at hand");
        assert!(matches!(error, Error::NotOpened), "{error}");
    }
}

#[tokio::test]
async fn an_envelope_that_was_changed_anywhere_does_not_open() {
    let kms = Memory::new();
    let envelopes = envelopes(&kms);
    let sealed = envelopes.seal(&context("acme", "a"), b"small").await.expect("it is sealed");
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        envelopes.open(&context("acme", "a"), &changed).await.expect_err("a bit differs");
    }
    envelopes.open(&context("acme", "a"), &sealed).await.expect("this one opens");
}
