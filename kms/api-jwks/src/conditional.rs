//! Conditional requests: a verifier that has the current keys is told so in a few bytes (RFC 9110 §13.1.2).

use std::sync::LazyLock;

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use kms_core::verbs::PublishedKeys;

/// A public document, ready to be served. A clone copies nothing.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) content_type: HeaderValue,
    pub(crate) body: Bytes,
    /// A strong entity tag, with its quotes.
    pub(crate) etag: HeaderValue,
    /// How long a cache may keep it.
    pub(crate) cache_control: HeaderValue,
}

impl Document {
    /// The document, or 304 when the request says that its sender has it.
    pub(crate) fn answer(self, request: &HeaderMap) -> Response {
        let mut response = if is_known(request, self.etag.as_bytes()) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let mut response = Response::new(Body::from(self.body));
            response.headers_mut().insert(CONTENT_TYPE, self.content_type);
            response
        };
        response.headers_mut().insert(ETAG, self.etag);
        response.headers_mut().insert(CACHE_CONTROL, self.cache_control);
        response
    }
}

/// A strong entity tag of our own making, which is ASCII; were it not, it would match no request.
pub(crate) fn etag(tag: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(tag).unwrap_or(HeaderValue::from_static("\"\""))
}

/// `Cache-Control` for everybody, for so long.
pub(crate) fn cache_control(max_age_seconds: u32) -> HeaderValue {
    /// For each age that there is.
    static VALUES: LazyLock<Vec<HeaderValue>> =
        LazyLock::new(|| (0..=PublishedKeys::MAX_AGE_SECONDS_MAX).filter_map(written).collect());
    fn written(seconds: u32) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("public, max-age={seconds}")).ok()
    }
    let value = usize::try_from(max_age_seconds).ok().and_then(|seconds| VALUES.get(seconds));
    value.cloned().unwrap_or(HeaderValue::from_static("no-cache"))
}

/// Whether `If-None-Match` names `etag`, which is strong, or `*`.
fn is_known(request: &HeaderMap, etag: &[u8]) -> bool {
    request
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.trim() == "*" || Tags(value).any(|tag| tag.as_bytes() == etag))
}

/// The entity tags of a list, with their quotes and without `W/`, for the comparison is the weak one. Ends at
/// the first thing that is none.
struct Tags<'a>(&'a str);

impl<'a> Iterator for Tags<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start_matches([' ', '\t', ',']);
        let rest = rest.strip_prefix("W/").unwrap_or(rest);
        let end = rest.strip_prefix('"')?.find('"')? + 2;
        let (tag, rest) = rest.split_at(end);
        self.0 = rest;
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_known_by(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, line.parse().expect("a header value"));
        }
        is_known(&headers, b"\"abc\"")
    }

    #[test]
    fn another_tag_or_no_tag_does_not_match() {
        let strangers: [&[&str]; 12] = [
            &[],
            &[""],
            &["abc"],
            &["\"abc"],
            &["abc\""],
            &["\"abcd\""],
            &["\"ABC\""],
            &["w/\"abc\""],
            &["\"x, \\\"abc\\\"\""],
            &["\"x\" nonsense \"abc\""],
            &["**"],
            &["W/ \"abc\""],
        ];
        for lines in strangers {
            assert!(!is_known_by(lines), "{lines:?}");
        }
    }

    #[test]
    fn the_tag_matches_alone_weak_in_a_list_and_on_a_second_line() {
        let known: [&[&str]; 8] = [
            &["\"abc\""],
            &["W/\"abc\""],
            &["\"x\", \"abc\""],
            &["\"x\",W/\"y\",\t\"abc\" , \"z\""],
            &["\"a,b\", \"abc\""],
            &["\"x\"", "\"abc\""],
            &["*"],
            &[" * "],
        ];
        for lines in known {
            assert!(is_known_by(lines), "{lines:?}");
        }
    }

    #[test]
    fn an_answer_of_304_has_no_body_and_keeps_tag_and_age() {
        let document = || Document {
            content_type: HeaderValue::from_static("application/json"),
            body: Bytes::from_static(b"{}"),
            etag: etag(Bytes::from_static(b"\"abc\"")),
            cache_control: cache_control(42),
        };
        let mut headers = HeaderMap::new();
        let fresh = document().answer(&headers);
        assert_eq!(fresh.status(), StatusCode::OK);
        assert_eq!(fresh.headers()[CONTENT_TYPE], "application/json");
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"abc\""));
        let known = document().answer(&headers);
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert!(known.headers().get(CONTENT_TYPE).is_none());
        for response in [fresh, known] {
            assert_eq!(response.headers()[ETAG], "\"abc\"");
            assert_eq!(response.headers()[CACHE_CONTROL], "public, max-age=42");
        }
    }
}
