//! Listing the token: every private, public and secret key object, ours or not, one page at a time.
//!
//! C_FindObjects knows no order, and SoftHSM's differs from process to process. So each page reads the CKA_IDs of
//! all objects, sorts them, and then reads the objects of its own part in full.

use cryptoki::{
    error::Error,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
};
use kms_core::hsm::{
    CKA_ID_LEN_MAX, Cursor, Fault, Half, LABEL_LEN_MAX, Object, PAGE_OBJECTS_MAX, Page, SPKI_LEN_MAX,
    cut_text,
};

use super::{
    session::{TokenSession, Trouble, in_time},
    template,
};
use crate::{public_key::PublicKey, wire::Request};

/// Most objects in a token that is listed: no list of ours may grow with what somebody put there.
const OBJECTS_MAX: usize = 200_000;

/// An object's place in the listing. Sorts as the listing does.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    cka_id: Vec<u8>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Private,
    Public,
    Secret,
}

impl TokenSession {
    /// The page that begins at `after`.
    pub(super) fn list(&self, request: &Request, after: Option<&Cursor>) -> Result<Page, Trouble> {
        let _searching = self.changes.searching()?;
        let index = self.index()?;
        in_time(request)?;
        let ids = || index.iter().map(|(entry, _)| entry.cka_id.as_slice());
        let start = after.map_or(0, |cursor| cursor.position(ids()));
        let end = index.len().min(start + PAGE_OBJECTS_MAX);
        let next = if end < index.len() { Cursor::behind(ids().take(end)) } else { None };
        let objects = index[start..end].iter().filter_map(|(entry, handle)| self.object(entry, *handle));
        let objects = objects.collect::<Result<_, _>>()?;
        // At the end: a login that is lost on the way hides private objects, and makes their handles stale.
        self.logged_in()?;
        Ok(Page { objects, next })
    }

    /// Every key object, in order.
    fn index(&self) -> Result<Vec<(Entry, ObjectHandle)>, Trouble> {
        let handles = self.session.find_objects(&[Attribute::Token(true)])?;
        if handles.len() > OBJECTS_MAX {
            let text = format!("the token holds more than {OBJECTS_MAX} objects, too many to be listed");
            return Err(Fault::Failed(text).into());
        }
        let entries = handles.into_iter().filter_map(|handle| Some((self.entry(handle)?, handle)));
        let entries = entries.map(|(entry, handle)| entry.map(|entry| (entry, handle)));
        let mut index = entries.collect::<Result<Vec<_>, Error>>()?;
        index.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(index)
    }

    /// `None` for what is no key, and for what has gone since it was found.
    fn entry(&self, handle: ObjectHandle) -> Option<Result<Entry, Error>> {
        let attributes = self.read(handle, &[AttributeType::Class, AttributeType::Id])?;
        let place = |attributes: Vec<Attribute>| {
            let (mut kind, mut cka_id) = (None, Vec::new());
            for attribute in attributes {
                match attribute {
                    Attribute::Class(ObjectClass::PRIVATE_KEY) => kind = Some(Kind::Private),
                    Attribute::Class(ObjectClass::PUBLIC_KEY) => kind = Some(Kind::Public),
                    Attribute::Class(ObjectClass::SECRET_KEY) => kind = Some(Kind::Secret),
                    Attribute::Id(bytes) => cka_id = bytes,
                    _ => {}
                }
            }
            cka_id.truncate(CKA_ID_LEN_MAX);
            kind.map(|kind| Entry { cka_id, kind })
        };
        attributes.map(place).transpose()
    }

    fn object(&self, entry: &Entry, handle: ObjectHandle) -> Option<Result<Object, Trouble>> {
        let read: &[AttributeType] = match entry.kind {
            Kind::Private => &template::PRIVATE_ATTRIBUTES,
            Kind::Public => &PublicKey::ATTRIBUTES,
            Kind::Secret => &template::SECRET_ATTRIBUTES,
        };
        let attributes = match self.read(handle, &[&[AttributeType::Label], read].concat())? {
            Ok(attributes) => attributes,
            Err(error) => return Some(Err(error.into())),
        };
        let label = attributes.iter().find_map(|attribute| match attribute {
            Attribute::Label(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        });
        let half = match entry.kind {
            Kind::Private => Half::Private(template::key_object(&attributes)),
            Kind::Public => Half::Public(spki(&attributes)),
            Kind::Secret => Half::Secret(template::key_object(&attributes)),
        };
        let label = cut_text(&label.unwrap_or_default(), LABEL_LEN_MAX).to_owned();
        Some(Ok(Object { cka_id: entry.cka_id.clone(), label, half }))
    }

    /// The SubjectPublicKeyInfo of a public key object, if it is of a kind that is ours.
    pub(super) fn spki(&self, handle: ObjectHandle) -> Result<Option<Vec<u8>>, Error> {
        self.session.get_attributes(handle, &PublicKey::ATTRIBUTES).map(|attributes| spki(&attributes))
    }

    fn read(
        &self,
        handle: ObjectHandle,
        attributes: &[AttributeType],
    ) -> Option<Result<Vec<Attribute>, Error>> {
        match self.session.get_attributes(handle, attributes) {
            Err(error) if self.is_stale(&error) => None,
            read => Some(read),
        }
    }
}

fn spki(attributes: &[Attribute]) -> Option<Vec<u8>> {
    let spki = PublicKey::from_attributes(attributes).and_then(|key| key.spki());
    spki.ok().filter(|spki| spki.len() <= SPKI_LEN_MAX)
}
