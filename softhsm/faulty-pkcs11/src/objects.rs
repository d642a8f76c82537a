//! Looking for, and destroying, objects behind the caller's back, in a session of our own.

use std::ptr::{from_mut, null_mut};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID,
    CK_ULONG, CKA_CLASS, CKA_ID, CKA_KEY_TYPE, CKF_RW_SESSION, CKF_SERIAL_SESSION, CKR_OK,
};

use crate::call::real;

/// Longest attribute in bytes that is read, and most objects that are looked at.
const ATTRIBUTE_LEN_MAX: CK_ULONG = 4096;
const OBJECTS_MAX: usize = 10_000;

/// A session of the real module that the caller does not know; it closes when dropped.
struct Session(CK_SESSION_HANDLE);

/// Another object of the same class and key type as `object`: the one with the least CKA_ID that is not `object`'s, so
/// that the halves of a pair are swapped for the halves of one other pair.
pub(crate) fn lookalike(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Option<CK_OBJECT_HANDLE> {
    let class = attribute(session, object, CKA_CLASS)?;
    let key_type = attribute(session, object, CKA_KEY_TYPE)?;
    let id = attribute(session, object, CKA_ID)?;
    let scan = Session::open(slot(session)?)?;
    let others = scan.find(&mut [(CKA_CLASS, class), (CKA_KEY_TYPE, key_type)])?;
    let identified = |other| attribute(scan.0, other, CKA_ID).map(|id| (id, other));
    let others = others.into_iter().filter_map(identified).filter(|(other, _)| *other != id);
    others.min().map(|(_, other)| other)
}

/// Destroys `object`. One that is gone already is lost as well as any.
pub(crate) fn destroy(slot: CK_SLOT_ID, object: CK_OBJECT_HANDLE) {
    if let Some(session) = Session::open(slot) {
        let _ = real!(C_DestroyObject(session.0, object));
    }
}

/// The slot of `session`.
pub(crate) fn slot(session: CK_SESSION_HANDLE) -> Option<CK_SLOT_ID> {
    let mut info = CK_SESSION_INFO::default();
    let code = real!(C_GetSessionInfo(session, &raw mut info));
    (code == CKR_OK).then_some(info.slotID)
}

/// The value of an attribute, if it can be read.
pub(crate) fn attribute(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    attribute: CK_ATTRIBUTE_TYPE,
) -> Option<Vec<u8>> {
    let mut wanted = CK_ATTRIBUTE { type_: attribute, pValue: null_mut(), ulValueLen: 0 };
    let code = real!(C_GetAttributeValue(session, object, &raw mut wanted, 1));
    if code != CKR_OK || wanted.ulValueLen > ATTRIBUTE_LEN_MAX {
        return None;
    }
    let mut value = vec![0; usize::try_from(wanted.ulValueLen).ok()?];
    wanted.pValue = value.as_mut_ptr().cast();
    let code = real!(C_GetAttributeValue(session, object, &raw mut wanted, 1));
    value.truncate(usize::try_from(wanted.ulValueLen).ok()?);
    (code == CKR_OK).then_some(value)
}

impl Session {
    fn open(slot: CK_SLOT_ID) -> Option<Self> {
        let mut session = 0;
        let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
        let code = real!(C_OpenSession(slot, flags, null_mut(), None, &raw mut session));
        (code == CKR_OK).then_some(Self(session))
    }

    fn find(&self, template: &mut [(CK_ATTRIBUTE_TYPE, Vec<u8>)]) -> Option<Vec<CK_OBJECT_HANDLE>> {
        let as_c = |(type_, value): &mut (CK_ATTRIBUTE_TYPE, Vec<u8>)| CK_ATTRIBUTE {
            type_: *type_,
            pValue: value.as_mut_ptr().cast(),
            ulValueLen: value.len() as CK_ULONG,
        };
        let mut template: Vec<_> = template.iter_mut().map(as_c).collect();
        let len = template.len() as CK_ULONG;
        if real!(C_FindObjectsInit(self.0, template.as_mut_ptr(), len)) != CKR_OK {
            return None;
        }
        let mut objects = Vec::new();
        loop {
            let (mut object, mut found) = (0, 0);
            let code = real!(C_FindObjects(self.0, from_mut(&mut object), 1, &raw mut found));
            if code != CKR_OK || found == 0 || objects.len() >= OBJECTS_MAX {
                break;
            }
            objects.push(object);
        }
        let _ = real!(C_FindObjectsFinal(self.0));
        Some(objects)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = real!(C_CloseSession(self.0));
    }
}
