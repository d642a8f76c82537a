//! What guards a change: `request_id` (AIP-155) and `etag` (AIP-154).

use kms_core::{Error, verbs::Request};

/// The etag of a key at `revision`. With its quotes, as RFC 9110 §8.8.3 and AIP-154 write one.
pub(crate) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// Guards as core takes them; empty means absent.
pub(crate) fn parse(request_id: &str, etag: &str) -> Result<Request, Error> {
    Ok(Request { id: parse_request_id(request_id)?, etag: parse_etag(etag) })
}

/// A UUID (RFC 9562 §4), in lower case: its case has no meaning.
fn parse_request_id(text: &str) -> Result<Option<String>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(place, c)| match place {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        });
    if is_uuid {
        Ok(Some(text.to_ascii_lowercase()))
    } else {
        Err(Error::invalid("request_id", "a request_id is a UUID of 36 characters, fresh for each request"))
    }
}

/// The revision that an etag stands for. What is no etag of ours matches nothing, and core says so: no revision is as
/// high. The quotes may be missing, for shells eat them.
fn parse_etag(text: &str) -> Option<u64> {
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    (!text.is_empty()).then(|| bare.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0b6f2d1c-95a1-4f6e-8a57-0d6c2f9b7e11";

    #[test]
    fn a_request_id_that_is_no_uuid_is_refused() {
        let undashed = ID.replace('-', "");
        for bad in
            ["1", &undashed, &format!("{ID}0"), &format!("{{{ID}}}"), &ID.replace('b', "g"), &"é".repeat(18)]
        {
            assert_eq!(parse(bad, "").expect_err(bad).field(), Some("request_id"));
        }
    }

    #[test]
    fn a_request_id_in_capitals_is_the_same_request() {
        assert_eq!(parse(ID, ""), parse(&ID.to_uppercase(), ""));
    }

    #[test]
    fn an_etag_that_we_never_made_matches_no_revision() {
        for odd in ["\"\"", "W/\"1\"", "x", "-1", "\"", "18446744073709551616"] {
            assert_eq!(parse("", odd).map(|guards| guards.etag), Ok(Some(u64::MAX)), "{odd:?}");
        }
    }

    #[test]
    fn an_etag_reads_back_with_and_without_its_quotes() {
        for text in [etag(12), "12".to_owned()] {
            assert_eq!(parse("", &text).map(|guards| guards.etag), Ok(Some(12)));
        }
        assert_eq!(parse("", ""), Ok(Request::default()));
    }
}
