//! What the log is told of refusals.

use std::time::Duration;

use super::{super::refusal::Refusals, *};

#[test]
fn the_same_refusal_is_told_once_in_ten_seconds_and_how_often_it_was_true() {
    let clock = Arc::new(ManualClock::default());
    let refusals = Refusals::new(clock.clone());
    let (cluster, corp) = ("cluster".parse().expect("a name"), "corp".parse().expect("a name"));
    assert_eq!(refusals.count(Some(&cluster), Refusal::Expired), Some(0));
    for _ in 0..1_000 {
        assert_eq!(refusals.count(Some(&cluster), Refusal::Expired), None);
    }
    assert_eq!(refusals.count(Some(&cluster), Refusal::Audience), Some(0), "another reason");
    assert_eq!(refusals.count(Some(&corp), Refusal::Expired), Some(0), "another issuer");
    assert_eq!(refusals.count(None, Refusal::Malformed), Some(0));
    clock.elapse(Duration::from_secs(10));
    assert_eq!(refusals.count(Some(&cluster), Refusal::Expired), Some(1_000));
    assert_eq!(refusals.count(Some(&cluster), Refusal::Expired), None);
}

#[test]
fn what_is_written_of_the_issuers_is_their_names() {
    let issuers = Issuers::new(&rules("jwks_file = \"keys.json\""), Arc::new(ManualClock::default()));
    assert_eq!(format!("{issuers:?}"), "{\"cluster\"}");
    assert!(!issuers.is_empty());
}
