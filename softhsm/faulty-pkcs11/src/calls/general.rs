//! General-purpose functions (PKCS#11 v3.1 §5.4): here the shim refuses to start, and says what it is.

use std::ffi::c_void;

use cryptoki_sys::{CK_INFO, CK_RV, CK_VERSION, CKR_ARGUMENTS_BAD, CKR_GENERAL_ERROR, CKR_OK};

use crate::{
    call::{real, through},
    grammar::function::Function,
    module, process,
};

/// How CK_INFO.libraryDescription begins; kms knows the shim by it.
const DESCRIPTION: &[u8] = b"kms fault shim";

pub(crate) unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    if !allowed() {
        return CKR_GENERAL_ERROR;
    }
    through(Function::Initialize, None, |_| real!(C_Initialize(arguments)))
}

pub(crate) unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    through(Function::Finalize, None, |_| {
        let code = real!(C_Finalize(reserved));
        if code == CKR_OK {
            process::closed(|_, _| true);
        }
        code
    })
}

/// The real module's information under our description. It keeps the manufacturer, by which profiles are found. A shim
/// that may not start tells what it is nevertheless.
pub(crate) unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    // SAFETY: the caller's pointer is null or takes a CK_INFO.
    let Some(told) = (unsafe { info.as_mut() }) else { return CKR_ARGUMENTS_BAD };
    if !allowed() {
        let version = CK_VERSION { major: 2, minor: 40 };
        *told = CK_INFO { cryptokiVersion: version, ..Default::default() };
        told.manufacturerID = padded(b"kms");
        told.libraryDescription = padded(DESCRIPTION);
        return CKR_OK;
    }
    through(Function::GetInfo, None, |_| {
        let code = real!(C_GetInfo(info));
        if code == CKR_OK {
            // SAFETY: it was not null, and the real module has filled it.
            let described = unsafe { &mut (*info).libraryDescription };
            *described = padded(&[DESCRIPTION, b" ", &described[..]].concat());
        }
        code
    })
}

fn allowed() -> bool {
    module::loaded().is_some_and(|module| module.allowed)
}

/// As much of `text` as fits, padded with blanks.
fn padded(text: &[u8]) -> [u8; 32] {
    let mut field = [b' '; 32];
    field.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    field
}
