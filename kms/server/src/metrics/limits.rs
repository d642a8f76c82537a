//! What came too often.

use std::fmt;

use kms_core::limits::{Limit, Refusals};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, refusals: &Refusals) -> fmt::Result {
    let help =
        "Calls that were refused because they came too often, by the limit that makes them wait longest";
    let mut family = encoder.encode_descriptor("rate_limited", help, None, MetricType::Counter)?;
    for (limit, count) in Limit::ALL.into_iter().zip(refusals.by_limit) {
        ConstCounter::new(count).encode(family.encode_family(&[("limit", limit.as_str())])?)?;
    }
    let counter = ConstCounter::new(refusals.unrecorded);
    let help = "Those of them that are not in the audit log: one of each caller is, every second";
    counter.encode(encoder.encode_descriptor("rate_limited_unrecorded", help, None, counter.metric_type())?)
}
