//! What the token holds, object by object and page by page: the ground of inventory and attribute audit.
//!
//! A listing is in the order of CKA_ID and class, and a [`Cursor`] names an object instead of counting: workers see
//! a token's objects each in an order of their own, and objects come and go between two pages. So the pages of one
//! listing may come from any worker, and what is there all the time is listed exactly once.

use super::KeyObject;

/// Most objects of one page.
pub const PAGE_OBJECTS_MAX: usize = 192;
/// Longest CKA_ID that is told, in bytes; of a longer one, which cannot be ours, these first ones are.
pub const CKA_ID_LEN_MAX: usize = 64;
/// Longest CKA_LABEL that is told, in bytes; ours has at most 74.
pub const LABEL_LEN_MAX: usize = 128;
/// Longest SubjectPublicKeyInfo that is told, in bytes; that of RSA-4096 has 550.
pub const SPKI_LEN_MAX: usize = 600;

/// A private, public or secret key object of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// CKA_ID, 0 to [`CKA_ID_LEN_MAX`] bytes: it need not be ours.
    pub cka_id: Vec<u8>,
    /// CKA_LABEL, at most [`LABEL_LEN_MAX`] bytes, with U+FFFD for what is no UTF-8.
    pub label: String,
    /// Which part of a key it is.
    pub half: Half,
}

/// Which half of a pair an object is, or a whole secret key, and what is read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Half {
    /// A private key.
    Private(KeyObject),
    /// A public key: its SubjectPublicKeyInfo (DER), or `None` when it is of no kind that is ours.
    Public(Option<Vec<u8>>),
    /// A secret key.
    Secret(KeyObject),
}

/// A part of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of the listing.
    pub objects: Vec<Object>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
}

/// A place in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The CKA_ID of the last object that was listed.
    pub cka_id: Vec<u8>,
    /// How many objects of that CKA_ID were listed.
    pub listed: u32,
}

impl Cursor {
    /// How many of `ids`, the CKA_IDs of a whole listing in its order, lie before this place.
    pub fn position<'a>(&self, ids: impl IntoIterator<Item = &'a [u8]>) -> usize {
        let mut same = 0;
        let is_before = |id: &&[u8]| {
            same += u32::from(*id == self.cka_id);
            *id < self.cka_id.as_slice() || (*id == self.cka_id && same <= self.listed)
        };
        ids.into_iter().take_while(is_before).count()
    }

    /// The place behind the last of `ids`, which begin the listing; `None` when there are none.
    pub fn behind<'a>(ids: impl DoubleEndedIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut from_the_end = ids.rev().peekable();
        let cka_id = from_the_end.peek()?.to_vec();
        let same = from_the_end.take_while(|id| *id == cka_id).count();
        Some(Self { cka_id, listed: u32::try_from(same).unwrap_or(u32::MAX) })
    }
}

/// `text` as far as it fits into `len_max` bytes.
pub fn cut_text(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&[u8]; 7] = [b"", b"", b"", b"a", b"a", b"ab", b"b"];

    #[test]
    fn pages_of_any_size_hold_every_object_once() {
        for len in 1..=IDS.len() + 1 {
            let (mut seen, mut at) = (Vec::new(), None::<Cursor>);
            loop {
                let start = at.as_ref().map_or(0, |cursor| cursor.position(IDS));
                let end = IDS.len().min(start + len);
                seen.extend_from_slice(&IDS[start..end]);
                at = Cursor::behind(IDS[..end].iter().copied());
                if end == IDS.len() {
                    break;
                }
            }
            assert_eq!(seen, IDS, "pages of {len}");
        }
    }

    #[test]
    fn a_place_whose_object_has_gone_is_where_it_would_be() {
        let cursor = Cursor { cka_id: b"aa".to_vec(), listed: 2 };
        assert_eq!(cursor.position(IDS), 5);
        let cursor = Cursor { cka_id: b"z".to_vec(), listed: 1 };
        assert_eq!(cursor.position(IDS), IDS.len());
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!([cut_text("aé", 2), cut_text("aé", 3), cut_text("", 1)], ["a", "aé", ""]);
    }
}
