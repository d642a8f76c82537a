//! Where a caller says, or is told, which key is meant.

use cryptoki_sys::{
    CK_GCM_PARAMS, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKA_ID, CKM_AES_GCM,
    CKR_FUNCTION_FAILED, CKR_OK,
};

use crate::{
    call::{real, through},
    grammar::{
        fault::Fault,
        function::Function,
        line::{GcmUse, Question},
    },
    ivs, objects,
    process::{self, Hit},
};

/// Longest IV in bytes that is reported whole.
const IV_LEN_MAX: CK_ULONG = 512;

pub(crate) unsafe extern "C" fn C_SignInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::SignInit, Some(session), |hits| {
        real!(C_SignInit(session, mechanism, meant(session, key, hits)))
    })
}

pub(crate) unsafe extern "C" fn C_DecryptInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::DecryptInit, Some(session), |hits| {
        real!(C_DecryptInit(session, mechanism, meant(session, key, hits)))
    })
}

/// An IV counts as used from here on: what begins with it may be finished.
pub(crate) unsafe extern "C" fn C_EncryptInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::EncryptInit, Some(session), |hits| {
        let key = meant(session, key, hits);
        let code = real!(C_EncryptInit(session, mechanism, key));
        let is_reported = hits.iter().any(|hit| hit.fault == Fault::RecordIv);
        if code == CKR_OK
            && (is_reported || ivs::are_recorded())
            // SAFETY: the caller gave a mechanism, which the real module has just accepted.
            && let Some(iv) = unsafe { gcm_iv(mechanism) }
        {
            let cka_id = objects::attribute(session, key, CKA_ID);
            let used = GcmUse { key, cka_id, iv };
            if is_reported {
                process::tell(&Question::Iv(used.clone()));
            }
            if ivs::append(used).is_err() {
                // What is not on record must not happen.
                return CKR_FUNCTION_FAILED;
            }
        }
        code
    })
}

pub(crate) unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    found: *mut CK_OBJECT_HANDLE,
    found_max: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    through(Function::FindObjects, Some(session), |hits| {
        let code = real!(C_FindObjects(session, found, found_max, count));
        if code == CKR_OK {
            // SAFETY: the real module has filled `count`, and as many handles.
            for at in 0..usize::try_from(unsafe { *count }).unwrap_or(0) {
                // SAFETY: as above.
                let handle = unsafe { &mut *found.add(at) };
                *handle = meant(session, *handle, hits);
            }
        }
        code
    })
}

/// The key that is used for `key`: itself, unless a rule swaps handles and there is another to swap with.
fn meant(session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE, hits: &[Hit]) -> CK_OBJECT_HANDLE {
    let swapped = hits.iter().any(|hit| hit.fault == Fault::SwapHandles);
    if swapped { objects::lookalike(session, key).unwrap_or(key) } else { key }
}

/// The IV of an AES-GCM mechanism.
///
/// # Safety
/// `mechanism` is null or a mechanism with the parameter that it says.
unsafe fn gcm_iv(mechanism: *const CK_MECHANISM) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise.
    let mechanism = unsafe { mechanism.as_ref() }?;
    if mechanism.mechanism != CKM_AES_GCM || mechanism.ulParameterLen < size_of::<CK_GCM_PARAMS>() as CK_ULONG
    {
        return None;
    }
    // SAFETY: that is the type of the parameter of this mechanism, and it is long enough.
    let parameter = unsafe { mechanism.pParameter.cast::<CK_GCM_PARAMS>().as_ref() }?;
    if parameter.pIv.is_null() {
        return Some(Vec::new());
    }
    let len = usize::try_from(parameter.ulIvLen.min(IV_LEN_MAX)).ok()?;
    // SAFETY: the parameter says that so many bytes are there.
    Some(unsafe { std::slice::from_raw_parts(parameter.pIv, len) }.to_vec())
}
