//! Pages (AIP-158). A page token says after which item the next page begins. It is opaque and bound to the
//! list that it came from: with another parent or filter it is refused, for it would skip items silently.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use kms_core::{Error, algorithm::Hash, verbs::PAGE_LEN_MAX};

const PAGE_LEN_DEFAULT: usize = 100;
/// Longest token in characters: version, fingerprint and the longest id, a CKA_ID of 64 bytes in hexadecimal.
const TOKEN_LEN_MAX: usize = 192;
const VERSION: u8 = 1;
/// Bytes of the list's fingerprint. It guards against mistakes; access is the gate's business.
const FINGERPRINT_LEN: usize = 8;

/// How many items, of 0 for the default, never more than the most that a page may have.
pub(crate) fn len(page_size: i32) -> Result<usize, Error> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(PAGE_LEN_DEFAULT),
        Ok(len) => Ok(len.min(PAGE_LEN_MAX)),
        Err(_) => Err(Error::invalid("page_size", "a page size is not negative; use 0 for the default")),
    }
}

/// The id after which the page of this token begins; `None` for the first page. `list` is what the method and
/// its parent or filter make unique.
pub(crate) fn start(token: &str, list: [&str; 2]) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong =
        || Error::invalid("page_token", "this is no page token of this list; begin with its first page");
    if token.len() > TOKEN_LEN_MAX {
        return Err(wrong());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (head, last) = bytes.split_at_checked(1 + FINGERPRINT_LEN).ok_or_else(wrong)?;
    if *head != head_of(list) {
        return Err(wrong());
    }
    String::from_utf8(last.to_vec()).map(Some).map_err(|_| wrong())
}

/// The token of the page that begins after `last`.
pub(crate) fn token(last: &str, list: [&str; 2]) -> String {
    URL_SAFE_NO_PAD.encode([&head_of(list), last.as_bytes()].concat())
}

/// One page of `items`, which are sorted by the id that `id_of` gives, and the token of the next.
pub(crate) fn cut<T>(
    items: Vec<T>,
    len: usize,
    list: [&str; 2],
    is_after_start: impl Fn(&T) -> bool,
    id_of: impl Fn(&T) -> String,
) -> (Vec<T>, String) {
    let mut rest = items.into_iter().filter(is_after_start);
    let page: Vec<T> = rest.by_ref().take(len).collect();
    let next = rest.next().and_then(|_| page.last()).map(|last| token(&id_of(last), list));
    (page, next.unwrap_or_default())
}

fn head_of(list: [&str; 2]) -> [u8; 1 + FINGERPRINT_LEN] {
    // The method's name holds no NUL, so the two parts cannot run into each other.
    let digest = Hash::Sha256.digest(list.join("\0").as_bytes());
    let mut head = [VERSION; 1 + FINGERPRINT_LEN];
    head[1..].copy_from_slice(&digest.as_ref()[..FINGERPRINT_LEN]);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: [&str; 2] = ["ListKeys", "owner=a"];

    #[test]
    fn a_negative_page_size_is_refused_and_a_huge_one_cut() {
        assert_eq!(len(-1).expect_err("negative").field(), Some("page_size"));
        assert_eq!([len(0), len(1), len(i32::MAX)], [Ok(100), Ok(1), Ok(1000)]);
    }

    #[test]
    fn a_token_of_another_list_is_refused() {
        let token = token("k", LIST);
        for list in [["ListKeys", ""], ["ListKeys", "owner=b"], ["ListKeyVersions", "owner=a"]] {
            assert_eq!(start(&token, list).expect_err("another list").field(), Some("page_token"));
        }
    }

    #[test]
    fn a_token_that_was_not_made_here_is_refused() {
        let mut other_version = URL_SAFE_NO_PAD.decode(token("k", LIST)).expect("base64");
        other_version[0] += 1;
        let mut not_text = URL_SAFE_NO_PAD.decode(token("", LIST)).expect("base64");
        not_text.push(0xff);
        let long = token(&"k".repeat(200), LIST);
        for bad in
            ["a", "!", "k=", &URL_SAFE_NO_PAD.encode(other_version), &URL_SAFE_NO_PAD.encode(not_text), &long]
        {
            assert_eq!(start(bad, LIST).expect_err(bad).field(), Some("page_token"));
        }
    }

    #[test]
    fn pages_hold_every_item_once() {
        let (mut begin, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let is_after = |item: &u32| begin.as_ref().is_none_or(|last| item.to_string() > *last);
            let (page, next) = cut((1..=7).collect(), 3, LIST, is_after, u32::to_string);
            seen.extend(page);
            pages += 1;
            begin = start(&next, LIST).expect("its own token");
            if begin.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages), ((1..=7).collect::<Vec<u32>>(), 3));
    }

    #[test]
    fn a_last_page_that_is_full_has_no_next() {
        assert_eq!(cut(vec![1, 2], 2, LIST, |_| true, i32::to_string), (vec![1, 2], String::new()));
    }
}
