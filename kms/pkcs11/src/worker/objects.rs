//! What the token holds under one CKA_ID.

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use kms_core::hsm::{CkaId, Fault, KeyRef};

use super::{
    handles::mismatch,
    session::{TokenSession, Trouble},
};
use crate::public_key::PublicKey;

/// The objects of one CKA_ID.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) private: Vec<ObjectHandle>,
    pub(super) public: Vec<ObjectHandle>,
    pub(super) secret: Vec<ObjectHandle>,
}

impl TokenSession {
    /// One search for all of them: searching is the dear part.
    pub(super) fn objects(&self, id: CkaId) -> Result<Objects, Trouble> {
        let template = [Attribute::Token(true), Attribute::Id(id.as_bytes().to_vec())];
        let mut objects = Objects::default();
        for handle in self.session.find_objects(&template)? {
            match self.session.get_attributes(handle, &[AttributeType::Class])?.first() {
                Some(Attribute::Class(ObjectClass::PRIVATE_KEY)) => objects.private.push(handle),
                Some(Attribute::Class(ObjectClass::PUBLIC_KEY)) => objects.public.push(handle),
                Some(Attribute::Class(ObjectClass::SECRET_KEY)) => objects.secret.push(handle),
                _ => {}
            }
        }
        if objects.private.is_empty() && objects.secret.is_empty() {
            self.logged_in()?;
        }
        Ok(objects)
    }

    /// The private key of the one pair that is on record, and its SubjectPublicKeyInfo. That the two belong together is
    /// not known yet.
    pub(super) fn pair(&self, key: &KeyRef) -> Result<(ObjectHandle, Vec<u8>), Trouble> {
        let objects = {
            let _searching = self.changes.searching()?;
            self.objects(key.id)?
        };
        let (private, public) = match (&objects.private[..], &objects.public[..], &objects.secret[..]) {
            ([], _, []) => return Err(Fault::KeyNotFound.into()),
            ([private], [public], []) => (*private, *public),
            _ => return Err(objects.crowd(key.id, "one private and one public object").into()),
        };
        let spki = self.public_key(public)?.spki().map_err(Fault::KeyMismatch)?;
        if KeyRef::new(key.id, &spki) == *key { Ok((private, spki)) } else { Err(mismatch(key.id).into()) }
    }

    fn public_key(&self, handle: ObjectHandle) -> Result<PublicKey, Trouble> {
        let attributes = self.session.get_attributes(handle, &PublicKey::ATTRIBUTES)?;
        Ok(PublicKey::from_attributes(&attributes).map_err(Fault::Failed)?)
    }
}

impl Objects {
    /// They are not what should be there.
    pub(super) fn crowd(&self, id: CkaId, expected: &str) -> Fault {
        let Self { private, public, secret } = self;
        Fault::KeyMismatch(format!(
            "CKA_ID {id} names {} private, {} public and {} secret objects; it should be {expected}",
            private.len(),
            public.len(),
            secret.len()
        ))
    }
}
