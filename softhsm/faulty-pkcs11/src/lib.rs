//! The fault shim: a PKCS#11 module (v2.40, v3.x) that forwards to a real one, and fails when a test says so.
//!
//! What a vendor's module does wrong in the field (hangs, crashes, codes that lie, sessions and keys that get lost)
//! cannot be had from a healthy one on demand; this library does it on demand, at the C ABI, below everything that is
//! to be proven. Its controller is `kms_softhsm::faults`, where the grammar of rules is described too.
//!
//! `module` loads the real module and makes the function lists: the real ones, with ours put in. Each of `calls`
//! goes through `call`, which asks `process` whether a rule hits. There are no threads: a new script is read when
//! the next call begins, and the controller is asked before a fault happens.
//!
//! Never for production: C_Initialize fails unless `KMS_DEV_FAULT_INJECTION` is `1`, and kms recognises the library by
//! its description and refuses it without the same variable.

pub mod grammar;

mod call;
mod calls;
mod ivs;
mod link;
mod module;
mod objects;
mod process;

use cryptoki_sys::{CK_FLAGS, CK_FUNCTION_LIST, CK_INTERFACE, CK_RV, CK_ULONG, CK_UTF8CHAR, CK_VERSION};

/// PKCS#11 v2.40 §5.2.
///
/// # Safety
/// As the standard has it: `list` takes a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    // SAFETY: the caller's promise is ours.
    unsafe { calls::interface::C_GetFunctionList(list) }
}

/// PKCS#11 v3.0 §5.3. Where the real module has none, its v2.40 functions are the one interface.
///
/// # Safety
/// As the standard has it: `list` is null or takes `count` interfaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) -> CK_RV {
    // SAFETY: the caller's promise is ours.
    unsafe { calls::interface::C_GetInterfaceList(list, count) }
}

/// PKCS#11 v3.0 §5.3. Where the real module has none, its v2.40 functions are the one interface.
///
/// # Safety
/// As the standard has it: `name` is null or ends with a NUL, `version` is null or a version, `interface` takes a
/// pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    // SAFETY: the caller's promise is ours.
    unsafe { calls::interface::C_GetInterface(name, version, interface, flags) }
}
