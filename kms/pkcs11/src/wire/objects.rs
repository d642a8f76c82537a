//! What the token holds under one CKA_ID, and the attributes of a key, as they cross the wire.

use kms_core::hsm::{Found, KeyObject};

use super::codec::{Body, Malformed, Put};

/// Most objects of one class that an answer tells of one CKA_ID: it should be one.
pub(crate) const FOUND_OBJECTS_MAX: u16 = 64;

pub(super) fn encode_found(found: &Found, out: &mut Vec<u8>) {
    out.put_u32(u32::try_from(found.private.len()).unwrap_or(u32::MAX));
    found.private.iter().for_each(|object| encode_key(object, out));
    out.put_u32(u32::try_from(found.public.len()).unwrap_or(u32::MAX));
    found.public.iter().for_each(|spki| out.put_bytes(spki));
    out.put_u32(u32::try_from(found.secret.len()).unwrap_or(u32::MAX));
    found.secret.iter().for_each(|object| encode_key(object, out));
}

pub(super) fn decode_found(body: &mut Body<'_>) -> Result<Found, Malformed> {
    Ok(Found {
        private: body.list(FOUND_OBJECTS_MAX.into(), decode_key)?,
        public: body.list(FOUND_OBJECTS_MAX.into(), |body| Ok(body.bytes()?.to_vec()))?,
        secret: body.list(FOUND_OBJECTS_MAX.into(), decode_key)?,
    })
}

pub(super) fn encode_key(object: &KeyObject, out: &mut Vec<u8>) {
    let copyable = [object.copyable.is_some(), object.copyable == Some(true)];
    let flags = [
        object.token,
        object.private,
        object.sensitive,
        object.extractable,
        object.always_sensitive,
        object.never_extractable,
        object.local,
        object.modifiable,
        object.sign,
        object.encrypt,
        object.decrypt,
        object.other_use,
    ];
    flags.iter().chain(&copyable).for_each(|flag| out.put_u8((*flag).into()));
}

pub(super) fn decode_key(body: &mut Body<'_>) -> Result<KeyObject, Malformed> {
    Ok(KeyObject {
        token: body.flag()?,
        private: body.flag()?,
        sensitive: body.flag()?,
        extractable: body.flag()?,
        always_sensitive: body.flag()?,
        never_extractable: body.flag()?,
        local: body.flag()?,
        modifiable: body.flag()?,
        sign: body.flag()?,
        encrypt: body.flag()?,
        decrypt: body.flag()?,
        other_use: body.flag()?,
        copyable: match (body.flag()?, body.flag()?) {
            (true, copyable) => Some(copyable),
            (false, false) => None,
            (false, true) => return Err(Malformed),
        },
    })
}
