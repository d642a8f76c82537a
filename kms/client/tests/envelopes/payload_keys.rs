//! A data key that is kept in memory seals many messages, and each must have a payload key of its own: nonces are
//! fixed (promise 14). GCM encrypts zeros to its key stream, so two envelopes of zeros begin alike exactly if their
//! payload keys are the same.

use std::{
    collections::HashSet,
    env,
    process::Command,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use kms_client::envelope::{Envelopes, Policy};
use kms_envelope::Envelope;

use crate::{
    context,
    memory::{KEY, Memory},
};

/// Names this process one of several that begin alike.
const TWIN: &str = "KMS_TEST_TWIN";
const PROCESSES: usize = 4;

/// One data key for everything, whatever it costs whom it leaks from.
fn one_data_key(kms: &Memory) -> Envelopes<Memory> {
    let age_max = Duration::from_secs(24 * 3600);
    let policy = Policy { age_max, messages_max: u64::MAX, bytes_max: u64::MAX, ..Policy::default() };
    Envelopes::new(kms.clone(), KEY, policy)
}

/// The beginning of the key stream of one more message.
async fn key_stream(envelopes: &Envelopes<Memory>) -> [u8; 16] {
    let sealed = envelopes.seal(&context("acme", "a"), &[0; 16]).await.expect("it is sealed");
    let envelope = Envelope::parse(&sealed).expect("it is one");
    *envelope.payload().first_chunk().expect("16 bytes and a tag")
}

#[tokio::test]
async fn a_data_key_in_memory_never_gives_two_messages_the_same_payload_key() {
    let is_full = env::var_os("KMS_TORTURE").is_some_and(|value| value == "1");
    let (which, count) = if is_full { ("full", 10_000_000) } else { ("sample", 100_000) };
    let (began, kms) = (Instant::now(), Memory::new());
    let envelopes = one_data_key(&kms);
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(key_stream(&envelopes).await);
    }
    assert_eq!(kms.generated.load(Relaxed), 1, "all under one data key");
    streams.sort_unstable();
    let twice = streams.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!(twice, 0, "payload keys came twice");
    println!(
        "\nPROMISE | 14 | {which}: {count} messages sealed by the SDK under one data key in memory | 0 payload keys \
         twice | | {} s |",
        began.elapsed().as_secs()
    );
}

#[tokio::test]
async fn processes_that_begin_with_the_same_data_key_share_no_payload_key() {
    // Each process makes the same data key: this KMS in memory counts from 0.
    let envelopes = one_data_key(&Memory::new());
    if env::var_os(TWIN).is_some() {
        // The harness may have begun a line.
        println!();
        for _ in 0..1_000 {
            println!("{TWIN} {}", u128::from_be_bytes(key_stream(&envelopes).await));
        }
        return;
    }
    let myself = env::current_exe().expect("a test is a program");
    let name = "payload_keys::processes_that_begin_with_the_same_data_key_share_no_payload_key";
    let mut streams = HashSet::new();
    for _ in 0..PROCESSES {
        let twin = Command::new(&myself).args(["--exact", name, "--nocapture"]).env(TWIN, "1").output();
        let output = twin.expect("it ends");
        let text = String::from_utf8(output.stdout).expect("text");
        let told = text.lines().filter_map(|line| line.strip_prefix(TWIN)).map(str::to_owned);
        streams.extend(told);
    }
    assert_eq!(streams.len(), PROCESSES * 1_000, "payload keys came twice, or not at all");
}
