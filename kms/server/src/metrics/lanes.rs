//! What waits for the HSM, by lane: four of them, and nothing per caller.

use std::fmt;

use kms_core::{hsm::LaneHealth, lane::Lane};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    lanes: &[LaneHealth; Lane::ALL.len()],
) -> fmt::Result {
    let of_each = || Lane::ALL.map(Lane::as_str).into_iter().zip(lanes);
    let help = "Requests that wait for their turn and are with no worker yet";
    let mut waiting =
        encoder.encode_descriptor("hsm_lane_requests_waiting", help, None, MetricType::Gauge)?;
    for (lane, health) in of_each() {
        ConstGauge::new(health.waiting).encode(waiting.encode_family(&[("lane", lane)])?)?;
    }
    let mut counter = |name: &str, help: &str, unit: Option<&Unit>, of: fn(&LaneHealth) -> f64| {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        of_each().try_for_each(|(lane, health)| {
            ConstCounter::new(of(health)).encode(family.encode_family(&[("lane", lane)])?)
        })
    };
    counter("hsm_lane_requests_sent", "Requests that went to a worker", None, |lane| lane.sent as f64)?;
    counter("hsm_lane_wait", "How long these had waited for it", Some(&Unit::Seconds), |lane| {
        lane.waited.as_secs_f64()
    })?;
    counter(
        "hsm_lane_requests_refused",
        "Requests for which there was no place, or whose deadline would have passed before their turn",
        None,
        |lane| lane.refused as f64,
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// Another number in every place.
    pub(crate) fn numbered() -> [LaneHealth; Lane::ALL.len()] {
        let mut numbers = 20..;
        let mut next = || numbers.next().unwrap_or_default();
        Lane::ALL.map(|_| LaneHealth {
            waiting: next(),
            refused: next().into(),
            sent: next().into(),
            waited: Duration::from_millis(next().into()),
        })
    }
}
