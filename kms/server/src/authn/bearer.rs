//! Bearer credentials (RFC 6750 §2.1): at most one with a request, and what kind it is.
//!
//! A credential of ours is hashed at once and looked up by its hash, so nothing here compares secrets and nothing can
//! log one.

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, header::AUTHORIZATION};

/// What our own credentials begin with.
const OURS: &str = "kms_";
/// Longest credential of ours in bytes; they have 43 and the prefix.
const OURS_LEN_MAX: usize = 256;
/// Longest JWT in bytes: issuers that put groups into theirs need some thousands.
const JWT_LEN_MAX: usize = 8 * 1024;
const SCHEME: &str = "Bearer ";

/// What a request presents.
pub(super) enum Bearer {
    /// Nothing.
    None,
    /// The SHA-256 of a credential of ours.
    Ours([u8; 32]),
    /// What looks like a JWT.
    Jwt(String),
    /// Something that no credential is, for this reason.
    Malformed(&'static str),
}

impl Bearer {
    /// Takes the credential out of `headers`: no handler and no log behind this line ever sees it.
    pub(super) fn take(headers: &mut HeaderMap) -> Self {
        let bearer = Self::read(headers);
        headers.remove(AUTHORIZATION);
        bearer
    }

    fn read(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Self::None };
        if values.next().is_some() {
            return Self::Malformed("several credentials");
        }
        let of_scheme = |(scheme, _): &(&[u8], _)| scheme.eq_ignore_ascii_case(SCHEME.as_bytes());
        let split = value.as_bytes().split_at_checked(SCHEME.len()).filter(of_scheme);
        let Some((_, credential)) = split else { return Self::Malformed("no bearer credential") };
        let visible = |text: &&str| text.bytes().all(|c| c.is_ascii_graphic());
        let Some(credential) = str::from_utf8(credential).ok().filter(visible) else {
            return Self::Malformed("characters that no credential has");
        };
        if credential.starts_with(OURS) {
            return Self::ours(credential);
        }
        // Compact serialisation (RFC 7515 §7.1): three parts.
        match credential.bytes().filter(|c| *c == b'.').count() {
            2 if credential.len() <= JWT_LEN_MAX => Self::Jwt(credential.to_owned()),
            2 => Self::Malformed("a JWT that is too long"),
            _ => Self::Malformed("neither an access token nor a JWT"),
        }
    }

    fn ours(credential: &str) -> Self {
        if credential.len() > OURS_LEN_MAX {
            return Self::Malformed("an access token that is too long");
        }
        match digest(&SHA256, credential.as_bytes()).as_ref().try_into() {
            Ok(sha256) => Self::Ours(sha256),
            Err(_) => Self::Malformed("an access token without a digest"),
        }
    }
}
