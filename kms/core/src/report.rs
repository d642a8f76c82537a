//! What a replica says about itself, for operators: it travels in its [`crate::replica::Beat`], and every replica shows
//! all of them.
//!
//! One release writes it and another one reads it. So every field may be absent, unknown fields are ignored, and what
//! cannot be read at all is shown as not known: a status that fails over an odd report is of no use. Nothing secret is
//! in it, and no path: whoever may see the status need not have a shell on the host.

use serde::{Deserialize, Serialize};

use crate::replica::Beat;

/// One replica's account of itself, a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Of its program.
    pub version: Option<String>,
    /// Whether it was asked to end, and only finishes what it has.
    pub leaving: Option<bool>,
    /// Why it is fenced, if it is.
    pub fenced: Option<String>,
    /// Why it is in recovery mode, if it is.
    pub recovery: Option<String>,
    /// How far its clock is ahead of the store's, in milliseconds; negative when it is behind.
    pub clock_skew_ms: Option<i64>,
    /// Its link to the token.
    pub hsm: Option<HsmReport>,
    /// Its audit log.
    pub audit: Option<AuditReport>,
}

/// The link to the token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HsmReport {
    /// Its state.
    pub link: Option<HsmLink>,
    /// Workers that are logged in and answer, without spare ones.
    pub workers_ready: Option<u32>,
    /// Such workers that there should be.
    pub workers_wanted: Option<u32>,
    /// Workers that are logged in and wait to take over.
    pub spares_ready: Option<u32>,
    /// Such workers that there should be.
    pub spares_wanted: Option<u32>,
    /// Workers, spare ones too, that are being started, or are to be.
    pub workers_starting: Option<u32>,
    /// Workers that were replaced since the replica began, for whatever reason.
    pub workers_replaced: Option<u64>,
    /// Calls that wait for the token or are at work in it.
    pub calls: Option<u32>,
}

/// State of the link to the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HsmLink {
    /// No worker is ready yet, or again.
    Starting,
    /// No worker is ready, and starts fail.
    Failing,
    /// At least one worker is ready.
    Ready,
    /// The PIN was refused, and is not tried again.
    PinRefused,
    /// No worker can be started any more.
    Abandoned,
    /// What only a later release knows.
    #[serde(other)]
    Unknown,
}

/// The audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditReport {
    /// Whether it takes no records, so that nothing is done.
    pub refusing: Option<bool>,
    /// Records that are not on stable storage yet.
    pub records_waiting: Option<u64>,
}

impl Report {
    /// For the beat; `{}` if it would be too long for one.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        if json.is_empty() || json.len() > Beat::REPORT_LEN_MAX { "{}".to_owned() } else { json }
    }

    /// Reads one, of whatever release. `None` when it is none.
    pub fn parse(json: &str) -> Option<Self> {
        // serde would read a list too, field by field.
        json.starts_with('{').then(|| serde_json::from_str(json).ok())?
    }

    /// Why it does not do all that it should, and what to do next; empty when it does.
    pub fn not_ready(&self) -> Vec<String> {
        let link = self.hsm.as_ref().and_then(|hsm| hsm.link);
        let hsm = match link {
            Some(HsmLink::Starting) => "no HSM worker is ready yet; if it stays so, see the server's log",
            Some(HsmLink::Failing) => {
                "the HSM cannot be used: workers do not start; the server's log says why, and `kms doctor` on its \
                 host looks at module and token"
            }
            Some(HsmLink::PinRefused) => {
                "the HSM has refused the PIN, which is not tried again; put the right one in its file, then run `kms \
                 hsm login` on its host"
            }
            Some(HsmLink::Abandoned) => "the process that starts HSM workers is gone; restart the server",
            Some(HsmLink::Ready | HsmLink::Unknown) | None => "",
        };
        let refusing = self.audit.as_ref().and_then(|audit| audit.refusing) == Some(true);
        let audit = if refusing {
            "the audit log takes no records, so nothing is done; see to its disk, and the server's log"
        } else {
            ""
        };
        let own = [hsm, audit].into_iter().filter(|text| !text.is_empty()).map(str::to_owned);
        self.fenced.iter().chain(&self.recovery).cloned().chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Report {
        Report {
            version: Some("1.2.3".to_owned()),
            leaving: Some(false),
            fenced: Some("fenced: because".to_owned()),
            recovery: Some("recovery mode: because".to_owned()),
            clock_skew_ms: Some(-7),
            hsm: Some(HsmReport {
                link: Some(HsmLink::PinRefused),
                workers_ready: Some(1),
                workers_wanted: Some(2),
                spares_ready: Some(3),
                spares_wanted: Some(4),
                workers_starting: Some(5),
                workers_replaced: Some(6),
                calls: Some(7),
            }),
            audit: Some(AuditReport { refusing: Some(true), records_waiting: Some(8) }),
        }
    }

    #[test]
    fn what_is_no_report_is_not_known_and_no_error() {
        for odd in
            ["", "{", "[]", "null", "7", "\"text\"", r#"{"leaving":"perhaps"}"#, r#"{"hsm":{"calls":-1}}"#]
        {
            assert_eq!(Report::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_report_of_another_release_is_read_as_far_as_it_is_known() {
        assert_eq!(Report::parse("{}"), Some(Report::default()));
        let later = r#"{"version":"9.0.0","mood":"good","hsm":{"link":"dreaming","calls":3,"colour":[1]}}"#;
        let hsm = HsmReport { link: Some(HsmLink::Unknown), calls: Some(3), ..HsmReport::default() };
        let expected = Report { version: Some("9.0.0".to_owned()), hsm: Some(hsm), ..Report::default() };
        assert_eq!(Report::parse(later), Some(expected));
    }

    #[test]
    fn a_report_reads_back_as_it_was_written_and_one_that_is_too_long_says_nothing() {
        assert_eq!(Report::parse(&full().to_json()), Some(full()));
        assert!(full().to_json().len() < Beat::REPORT_LEN_MAX / 16);
        let long = Report { fenced: Some("x".repeat(Beat::REPORT_LEN_MAX)), ..full() };
        assert_eq!(long.to_json(), "{}");
    }

    #[test]
    fn everything_that_is_wrong_is_named_and_nothing_else() {
        let texts = full().not_ready();
        for part in ["fenced: because", "recovery mode: because", "kms hsm login", "audit log"] {
            assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
        }
        assert_eq!(texts.len(), 4);
        assert!(Report::default().not_ready().is_empty());
        let hsm = HsmReport { link: Some(HsmLink::Ready), ..HsmReport::default() };
        let well = Report { hsm: Some(hsm), audit: Some(AuditReport::default()), ..Report::default() };
        assert!(well.not_ready().is_empty());
    }
}
