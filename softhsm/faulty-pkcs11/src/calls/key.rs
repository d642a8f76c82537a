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
/// What a module uses that ignores the caller's IV.
const FIXED_IV: [u8; 12] = [0x42; 12];

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
        let key = meant(session, key, hits);
        heeding(mechanism, hits, |mechanism| real!(C_DecryptInit(session, mechanism, key)))
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
        let code = heeding(mechanism, hits, |mechanism| real!(C_EncryptInit(session, mechanism, key)));
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

/// Begins an operation with what a rule lets the module heed of the parameter of AES-GCM.
fn heeding(
    mechanism: *mut CK_MECHANISM,
    hits: &[Hit],
    begin: impl FnOnce(*mut CK_MECHANISM) -> CK_RV,
) -> CK_RV {
    let has = |fault| hits.iter().any(|hit| hit.fault == fault);
    // SAFETY: the caller gave a mechanism with its parameter.
    let Some(parameter) = (unsafe { gcm_params(mechanism) }) else { return begin(mechanism) };
    let mut parameter = *parameter;
    if has(Fault::FixedIv) {
        // Never freed: a module may look at it until the operation ends.
        let iv = Box::leak(Box::new(FIXED_IV));
        (parameter.pIv, parameter.ulIvLen) = (iv.as_mut_ptr(), iv.len() as CK_ULONG);
    }
    if has(Fault::NoAad) {
        (parameter.pAAD, parameter.ulAADLen) = (std::ptr::null_mut(), 0);
    }
    if !has(Fault::FixedIv) && !has(Fault::NoAad) {
        return begin(mechanism);
    }
    let mut heeded = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameter).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    begin(&raw mut heeded)
}

/// The parameter of an AES-GCM mechanism.
///
/// # Safety
/// `mechanism` is null or a mechanism with the parameter that it says, which lives as long as it is looked at.
unsafe fn gcm_params<'a>(mechanism: *const CK_MECHANISM) -> Option<&'a CK_GCM_PARAMS> {
    // SAFETY: the caller's promise.
    let mechanism = unsafe { mechanism.as_ref() }?;
    if mechanism.mechanism != CKM_AES_GCM || mechanism.ulParameterLen < size_of::<CK_GCM_PARAMS>() as CK_ULONG
    {
        return None;
    }
    // SAFETY: that is the type of the parameter of this mechanism, and it is long enough.
    unsafe { mechanism.pParameter.cast::<CK_GCM_PARAMS>().as_ref() }
}

/// The IV of an AES-GCM mechanism.
///
/// # Safety
/// `mechanism` is null or a mechanism with the parameter that it says.
unsafe fn gcm_iv(mechanism: *const CK_MECHANISM) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise.
    let parameter = unsafe { gcm_params(mechanism) }?;
    if parameter.pIv.is_null() {
        return Some(Vec::new());
    }
    let len = usize::try_from(parameter.ulIvLen.min(IV_LEN_MAX)).ok()?;
    // SAFETY: the parameter says that so many bytes are there.
    Some(unsafe { std::slice::from_raw_parts(parameter.pIv, len) }.to_vec())
}
