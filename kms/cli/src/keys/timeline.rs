//! `kms keys timeline`: what has happened to a key's versions and what will, in order.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use kms_client::{Client, v1};
use serde::Serialize;

use super::version;
use crate::{clock, duration, failure::Failure, name::KeyName, output::Format};

/// Show what has happened to the versions of a key, and what will, in the order of time
#[derive(Debug, Args)]
pub(super) struct Timeline {
    /// Name of the key
    name: KeyName,
}

/// One event.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Event {
    #[serde(serialize_with = "to_second")]
    time: Timestamp,
    when: String,
    version: Option<u32>,
    event: &'static str,
}

impl Timeline {
    pub(super) async fn run(self, client: Client, format: Format) -> Result<(), Failure> {
        let key = client.get_key(v1::GetKeyRequest { name: self.name.to_string() }).await?;
        let versions = version::all(&client, &self.name).await?;
        let events = events(&key, &versions, clock::now());
        format.print_list(&events, &["time", "when", "version", "event"])
    }
}

fn events(key: &v1::Key, versions: &[v1::KeyVersion], now: Timestamp) -> Vec<Event> {
    let mut events = vec![];
    let mut add = |version: Option<u32>, time: Option<prost_types::Timestamp>, event| {
        if let Some(time) = time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok()) {
            events.push(Event { time, when: distance(time, now), version, event });
        }
    };
    let wraps = key.purpose == "wrap";
    for version in versions {
        use v1::key_version::State;
        let number = Some(version.number);
        let (state, gone) = (version.state(), version.compromise_time.is_some());
        add(
            number,
            version.create_time,
            if state == State::PendingCreation { "is being made" } else { "made" },
        );
        add(number, version.publish_time.filter(|_| !wraps), "published in the JWKS");
        let begins = match (wraps, version.emergency) {
            (true, _) => "wraps",
            (false, true) => "signs, at once: an emergency",
            (false, false) => "signs",
        };
        add(number, version.activate_time, begins);
        let ends = if wraps { "no longer wraps, still unwraps" } else { "no longer signs, still verifies" };
        add(number, version.retire_time.filter(|_| !gone), ends);
        let compromised = match wraps {
            true => "declared compromised: unwraps for a recoverer alone",
            false => "declared compromised: refused everywhere",
        };
        add(number, version.compromise_time, compromised);
        add(number, version.withdraw_time.filter(|_| !gone), "leaves the JWKS");
        add(number, version.destroy_time, "destroyed in the HSM");
    }
    if !versions.iter().any(|version| version.activate_time == key.next_rotation_time) {
        let begins = if wraps { "the next version is to wrap" } else { "the next version is to sign" };
        add(None, key.next_rotation_time, begins);
    }
    add(None, Some(prost_types::Timestamp { seconds: now.as_second(), nanos: 0 }), "now");
    // What lies at the same time stays in the order of a version's life.
    events.sort_by_key(|event| event.time);
    events
}

fn distance(time: Timestamp, now: Timestamp) -> String {
    let span = SignedDuration::from_secs(time.as_second() - now.as_second());
    match span.as_secs() {
        0 => "now".to_owned(),
        1.. => format!("in {}", duration::format(span)),
        _ => format!("{} ago", duration::format(span.abs())),
    }
}

fn to_second<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn events_stand_in_the_order_of_time_with_now_among_them() {
        let first = v1::KeyVersion {
            number: 1,
            create_time: at(100),
            publish_time: at(100),
            activate_time: at(100),
            retire_time: at(5_000),
            withdraw_time: at(9_000),
            ..Default::default()
        };
        let second = v1::KeyVersion {
            number: 2,
            create_time: at(900),
            publish_time: at(900),
            activate_time: at(5_000),
            ..Default::default()
        };
        let key = v1::Key { next_rotation_time: at(5_000), ..Default::default() };
        let now = Timestamp::from_second(1_000).expect("a time");
        let told = |events: Vec<Event>| -> Vec<String> {
            let tell =
                |event: Event| format!("{:?} {} {}", event.version.unwrap_or(0), event.when, event.event);
            events.into_iter().map(tell).collect()
        };
        assert_eq!(
            told(events(&key, &[first.clone(), second.clone()], now)),
            [
                "1 15m ago made",
                "1 15m ago published in the JWKS",
                "1 15m ago signs",
                "2 1m40s ago made",
                "2 1m40s ago published in the JWKS",
                "0 now now",
                "1 in 1h6m40s no longer signs, still verifies",
                "2 in 1h6m40s signs",
                "1 in 2h13m20s leaves the JWKS",
            ]
        );
        let key = v1::Key { next_rotation_time: at(20_000), ..Default::default() };
        let last = told(events(&key, &[first, second], now)).pop();
        assert_eq!(last.as_deref(), Some("0 in 5h16m40s the next version is to sign"));
    }
}
