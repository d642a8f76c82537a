//! How a caller gets at the functions (PKCS#11 v3.0 §5.3), and modules that announce what they do not have.

use std::{
    ffi::CStr,
    ptr::{from_ref, null_mut},
};

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_INTERFACE, CK_RV, CK_ULONG, CK_UTF8CHAR, CK_VERSION, CKR_ARGUMENTS_BAD,
    CKR_BUFFER_TOO_SMALL, CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR, CKR_OK,
};

use crate::{
    call::through,
    grammar::{fault::Fault, function::Function},
    module::{self, STANDARD},
    process::Hit,
};

pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(module) = module::loaded() else { return CKR_GENERAL_ERROR };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    through(Function::GetFunctionList, None, |hits| {
        let empty = hits.iter().any(|hit| hit.fault == Fault::NullFunctions);
        let ours = from_ref(module.ours).cast_mut();
        // SAFETY: the caller's pointer takes a pointer, and it is not null.
        unsafe { *list = if empty { module.null_functions.pFunctionList.cast() } else { ours } };
        CKR_OK
    })
}

pub(crate) unsafe extern "C" fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) -> CK_RV {
    let Some(module) = module::loaded() else { return CKR_GENERAL_ERROR };
    if count.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let give = |interfaces: &[CK_INTERFACE]| {
        // SAFETY: the caller's count is not null.
        let room = unsafe { count.replace(interfaces.len() as CK_ULONG) };
        if list.is_null() {
            return CKR_OK;
        }
        if room < interfaces.len() as CK_ULONG {
            return CKR_BUFFER_TOO_SMALL;
        }
        // SAFETY: the caller's list has that room.
        unsafe { list.copy_from_nonoverlapping(interfaces.as_ptr(), interfaces.len()) };
        CKR_OK
    };
    if list.is_null() {
        return give(&module.interfaces);
    }
    through(Function::GetInterfaceList, None, |hits| match instead(module, hits) {
        Some(instead) => give(instead.map_or(&[], std::slice::from_ref)),
        None => give(&module.interfaces),
    })
}

pub(crate) unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    let Some(module) = module::loaded() else { return CKR_GENERAL_ERROR };
    if interface.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the caller's name is null or ends with a NUL.
    let name = if name.is_null() { STANDARD } else { unsafe { CStr::from_ptr(name.cast()) } };
    // SAFETY: the caller's version is null or a version.
    let version = unsafe { version.as_ref() };
    through(Function::GetInterface, None, |hits| {
        let found = match instead(module, hits) {
            Some(instead) => instead.map_or(null_mut(), |interface| from_ref(interface).cast_mut()),
            None => match module.interfaces.iter().find(|interface| is(interface, name, version, flags)) {
                Some(interface) => from_ref(interface).cast_mut(),
                None => return CKR_FUNCTION_FAILED,
            },
        };
        // SAFETY: the caller's pointer takes a pointer, and it is not null.
        unsafe { *interface = found };
        CKR_OK
    })
}

/// What a rule gives out instead of the interfaces, if one does.
fn instead(module: &'static module::Module, hits: &[Hit]) -> Option<Option<&'static CK_INTERFACE>> {
    hits.iter().find_map(|hit| match hit.fault {
        Fault::NoInterface => Some(None),
        Fault::NullList => Some(Some(&module.null_list)),
        Fault::NullFunctions => Some(Some(&module.null_functions)),
        _ => None,
    })
}

/// Whether `interface` is the one that is asked for: the module's first of that name counts as its default.
fn is(interface: &CK_INTERFACE, name: &CStr, version: Option<&CK_VERSION>, flags: CK_FLAGS) -> bool {
    // SAFETY: names are the module's or ours, and end with a NUL.
    let named = unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) } == name;
    // SAFETY: every list begins with its version.
    let has = unsafe { interface.pFunctionList.cast::<CK_VERSION>().as_ref() };
    let versioned = version.is_none_or(|version| {
        has.is_some_and(|has| (has.major, has.minor) == (version.major, version.minor))
    });
    named && versioned && interface.flags & flags == flags
}
