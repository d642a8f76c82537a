//! A page of a listing, and the place where it begins, as they cross the wire.

use kms_core::hsm::{CKA_ID_LEN_MAX, Cursor, Half, Object, PAGE_OBJECTS_MAX, Page};

use super::{
    codec::{Body, Malformed, Put},
    objects::{decode_key, encode_key},
};

pub(super) fn encode_cursor(cursor: Option<&Cursor>, out: &mut Vec<u8>) {
    out.put_u8(cursor.is_some().into());
    if let Some(Cursor { cka_id, listed }) = cursor {
        out.put_bytes(cka_id);
        out.put_u32(*listed);
    }
}

pub(super) fn decode_cursor(body: &mut Body<'_>) -> Result<Option<Cursor>, Malformed> {
    if !body.flag()? {
        return Ok(None);
    }
    Ok(Some(Cursor { cka_id: cka_id(body)?, listed: body.u32()? }))
}

pub(super) fn encode_page(page: &Page, out: &mut Vec<u8>) {
    out.put_u32(u32::try_from(page.objects.len()).unwrap_or(u32::MAX));
    for Object { cka_id, label, half } in &page.objects {
        out.put_bytes(cka_id);
        out.put_bytes(label.as_bytes());
        match half {
            Half::Private(object) => {
                out.put_u8(0);
                encode_key(object, out);
            }
            Half::Public(None) => out.put_u8(1),
            Half::Public(Some(spki)) => {
                out.put_u8(2);
                out.put_bytes(spki);
            }
            Half::Secret(object) => {
                out.put_u8(3);
                encode_key(object, out);
            }
        }
    }
    encode_cursor(page.next.as_ref(), out);
}

pub(super) fn decode_page(body: &mut Body<'_>) -> Result<Page, Malformed> {
    let objects_max = u32::try_from(PAGE_OBJECTS_MAX).unwrap_or(u32::MAX);
    let objects = body.list(objects_max, |body| {
        Ok(Object {
            cka_id: cka_id(body)?,
            label: body.text()?,
            half: match body.u8()? {
                0 => Half::Private(decode_key(body)?),
                1 => Half::Public(None),
                2 => Half::Public(Some(body.bytes()?.to_vec())),
                3 => Half::Secret(decode_key(body)?),
                _ => return Err(Malformed),
            },
        })
    })?;
    Ok(Page { objects, next: decode_cursor(body)? })
}

fn cka_id(body: &mut Body<'_>) -> Result<Vec<u8>, Malformed> {
    let bytes = body.bytes()?;
    if bytes.len() <= CKA_ID_LEN_MAX { Ok(bytes.to_vec()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use kms_core::hsm::{LABEL_LEN_MAX, SPKI_LEN_MAX};

    use super::*;
    use crate::wire::FRAME_LEN_MAX;

    #[test]
    fn the_longest_page_lies_far_below_the_longest_frame() {
        let object = Object {
            cka_id: vec![7; CKA_ID_LEN_MAX],
            label: "x".repeat(LABEL_LEN_MAX),
            half: Half::Public(Some(vec![9; SPKI_LEN_MAX])),
        };
        let next = Some(Cursor { cka_id: object.cka_id.clone(), listed: u32::MAX });
        let mut out = Vec::new();
        encode_page(&Page { objects: vec![object; PAGE_OBJECTS_MAX], next }, &mut out);
        assert!(out.len() < FRAME_LEN_MAX * 2 / 3, "{} bytes", out.len());
    }
}
