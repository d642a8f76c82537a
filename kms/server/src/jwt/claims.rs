//! What a token must claim to be for us and for now (RFC 7519 §4.1, RFC 8725 §3.8 to §3.10).

use kms_core::{principal::Principal, time::Timestamp};
use serde_json::Value;

use super::{refusal::Refusal, token::Object};
use crate::config::JwtIssuer;

/// How far the issuer's clock may be from ours, in seconds.
const LEEWAY_SECONDS: i64 = 60;
/// The latest time that a token may name: the end of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;

/// Whom the claims name, if they keep the issuer's rules at `now`. `iss` has been looked up by then.
pub(super) fn check(claims: &Object, rules: &JwtIssuer, now: Timestamp) -> Result<Principal, Refusal> {
    if !is_for_us(claims.member("aud"), rules) {
        return Err(Refusal::Audience);
    }
    check_times(claims, rules, now.as_second())?;
    for (name, text) in &rules.required_claims {
        if claims.text(name) != Some(text) {
            return Err(Refusal::RequiredClaim);
        }
    }
    let subject = claims.text(&rules.subject_claim).ok_or(Refusal::Subject)?;
    Principal::of_jwt(&rules.name, subject).map_err(|_| Refusal::Subject)
}

/// One of our names must be among those of the token, which may name one or several (RFC 7519 §4.1.3).
fn is_for_us(aud: Option<&Value>, rules: &JwtIssuer) -> bool {
    let is_ours = |name: &str| rules.audiences.contains(name);
    match aud {
        Some(Value::String(name)) => is_ours(name),
        Some(Value::Array(names)) => {
            names.iter().all(Value::is_string) && names.iter().filter_map(Value::as_str).any(is_ours)
        }
        _ => false,
    }
}

fn check_times(claims: &Object, rules: &JwtIssuer, now: i64) -> Result<(), Refusal> {
    // A part of a second shortens a token's life and never lengthens it.
    let expires = seconds(claims.member("exp"), f64::floor)?.ok_or(Refusal::Expired)?;
    let from = seconds(claims.member("nbf"), f64::ceil)?;
    let issued = seconds(claims.member("iat"), f64::ceil)?;
    if now >= expires.saturating_add(LEEWAY_SECONDS) {
        return Err(Refusal::Expired);
    }
    let latest = now.saturating_add(LEEWAY_SECONDS);
    if [from, issued].into_iter().flatten().any(|time| time > latest) {
        return Err(Refusal::NotYetValid);
    }
    let lifetime = expires.saturating_sub(issued.unwrap_or(now));
    if u64::try_from(lifetime).is_ok_and(|lifetime| lifetime > rules.max_lifetime.as_secs()) {
        return Err(Refusal::Lifetime);
    }
    Ok(())
}

/// A NumericDate (RFC 7519 §2) in whole seconds; an error when it is none, or lies before 1970 or after 9999.
fn seconds(value: Option<&Value>, round: fn(f64) -> f64) -> Result<Option<i64>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let whole = value.as_i64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| (0.0..=SECONDS_MAX as f64).contains(seconds))?;
        #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
        Some(round(seconds) as i64)
    });
    whole.filter(|seconds| (0..=SECONDS_MAX).contains(seconds)).map(Some).ok_or(Refusal::Malformed)
}
