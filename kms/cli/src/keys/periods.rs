//! The periods of a key or of a class, as arguments.

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use prost_types::Duration;

use crate::duration;

/// Periods that are named. Those that are not stay as they are, or are the class's.
#[derive(Debug, Default, Args)]
pub(super) struct Periods {
    /// How often a new version is made ahead of time; `never`: only by `rotate`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_or_never)]
    rotation_period: Option<SignedDuration>,
    /// How long a version is published before it signs
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    publish_lead: Option<SignedDuration>,
    /// Longest life of a token signed by `kms jwt sign`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    max_token_ttl: Option<SignedDuration>,
    /// How much longer a version stays in the JWKS than its last token needs it
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    overlap: Option<SignedDuration>,
    /// From a version's withdrawal to its destruction; `never`: only by `destroy`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_or_never)]
    destroy_after: Option<SignedDuration>,
}

/// A period's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(super) enum Period {
    #[value(name = "rotation-period")]
    Rotation,
    PublishLead,
    MaxTokenTtl,
    Overlap,
    DestroyAfter,
}

impl Periods {
    pub(super) fn of(&self, period: Period) -> Option<Duration> {
        let span = match period {
            Period::Rotation => self.rotation_period,
            Period::PublishLead => self.publish_lead,
            Period::MaxTokenTtl => self.max_token_ttl,
            Period::Overlap => self.overlap,
            Period::DestroyAfter => self.destroy_after,
        };
        span.map(duration::to_wire)
    }

    /// The fields that are named here or in `given_back`, as a field mask names them. A path whose field is empty gives
    /// it back.
    pub(super) fn paths(&self, given_back: &[Period]) -> Vec<String> {
        let all = Period::value_variants().iter();
        let named = all.filter(|period| self.of(**period).is_some() || given_back.contains(period));
        named.map(|period| period.path().to_owned()).collect()
    }
}

impl Period {
    fn path(self) -> &'static str {
        match self {
            Self::Rotation => "rotation_period",
            Self::PublishLead => "publish_lead",
            Self::MaxTokenTtl => "max_token_ttl",
            Self::Overlap => "overlap",
            Self::DestroyAfter => "destroy_after",
        }
    }
}
