//! Envelopes over a KMS in memory.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

mod fields;
mod keys_in_memory;
mod memory;
mod payload_keys;
mod rewraps;
mod streams;

use kms_client::envelope::{EncryptionContext, EnvelopeContext, Envelopes, Policy};
use memory::{KEY, Memory};

fn envelopes(kms: &Memory) -> Envelopes<Memory> {
    Envelopes::new(kms.clone(), KEY, Policy::default())
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> EncryptionContext {
    EncryptionContext::new(pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))).expect("it is one")
}

fn context(tenant: &str, path: &str) -> EnvelopeContext {
    EnvelopeContext { key: pairs([("tenant", tenant)]), local: pairs([("path", path)]) }
}
