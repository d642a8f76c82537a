//! The real module, and the function lists that are given out in place of its own.

use std::{
    env,
    ffi::{CStr, OsString, c_void},
    io::Write as _,
    ptr::{from_ref, null_mut},
    sync::OnceLock,
};

use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_FUNCTION_LIST_3_2, CK_INTERFACE, CK_RV, CK_ULONG, CK_VERSION,
    CKR_OK,
};
use libloading::Library;

use crate::{
    calls,
    grammar::environment::{DEV_FLAG, IVS, MODULE, SOCKET},
    ivs, process,
};

/// The name of the standard's own interfaces (PKCS#11 v3.0 §5.3).
pub(crate) const STANDARD: &CStr = c"PKCS 11";
const VERSION_2_40: CK_VERSION = CK_VERSION { major: 2, minor: 40 };
const VERSION_3_2: CK_VERSION = CK_VERSION { major: 3, minor: 2 };

/// Puts our functions into a list of whatever version.
macro_rules! put_ours_in {
    ($list:ident: $($module:ident { $($function:ident),* $(,)? })*) => {
        $($($list.$function = Some(calls::$module::$function);)*)*
    };
    ($list:ident) => {
        put_ours_in! { $list:
            interface { C_GetFunctionList }
            general { C_Initialize, C_Finalize, C_GetInfo }
            slot { C_GetSlotList, C_GetTokenInfo }
            session { C_OpenSession, C_CloseSession, C_CloseAllSessions, C_Login }
            key { C_SignInit, C_EncryptInit, C_DecryptInit, C_FindObjects }
            object { C_CreateObject, C_GenerateKey, C_GenerateKeyPair, C_UnwrapKey }
            output {
                C_Sign, C_SignFinal, C_Encrypt, C_EncryptFinal, C_Decrypt, C_DecryptFinal, C_WrapKey,
            }
            plain {
                C_GetMechanismInfo, C_GetSessionInfo, C_Logout, C_DestroyObject, C_GetAttributeValue,
                C_FindObjectsInit, C_FindObjectsFinal, C_GenerateRandom,
            }
        }
    };
}

type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
type GetInterfaceList = unsafe extern "C" fn(*mut CK_INTERFACE, *mut CK_ULONG) -> CK_RV;

/// Everything that is loaded and made once in a process.
pub(crate) struct Module {
    /// Whether the environment allows the shim at all. Without it there is no real module.
    pub(crate) allowed: bool,
    real: CK_FUNCTION_LIST,
    /// The same with our functions put in.
    pub(crate) ours: &'static CK_FUNCTION_LIST,
    /// Interfaces as they are given out. A module of v2.40 has one here.
    pub(crate) interfaces: Vec<CK_INTERFACE>,
    /// An interface without a function list.
    pub(crate) null_list: CK_INTERFACE,
    /// An interface whose list is empty.
    pub(crate) null_functions: CK_INTERFACE,
    /// Keeps it loaded.
    _library: Option<Library>,
}

// SAFETY: the pointers in it lead to function lists and names that nobody writes and that stay for ever.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// The module, loaded by whichever call comes first. `None` when that failed; standard error has the reason.
pub(crate) fn loaded() -> Option<&'static Module> {
    static LOADED: OnceLock<Option<Module>> = OnceLock::new();
    let load = || match load() {
        Ok(module) => Some(module),
        Err(error) => {
            // PKCS#11 has no way to say more than a number.
            let _ = writeln!(std::io::stderr(), "kms fault shim: {error}");
            None
        }
    };
    LOADED.get_or_init(load).as_ref()
}

/// The real functions; none of them without a module.
pub(crate) fn real() -> &'static CK_FUNCTION_LIST {
    static NONE: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
    loaded().map_or_else(|| NONE.get_or_init(CK_FUNCTION_LIST::default), |module| &module.real)
}

fn load() -> Result<Module, String> {
    if env::var_os(DEV_FLAG).is_none_or(|flag| flag != "1") {
        return Ok(Module::new(
            false,
            CK_FUNCTION_LIST { version: VERSION_2_40, ..Default::default() },
            None,
        ));
    }
    let path = env::var_os(MODULE).ok_or_else(|| format!("{MODULE} must name the real module"))?;
    let library = open(&path)?;
    // SAFETY: the symbol has this type in every PKCS#11 module.
    let function = unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList\0") };
    let function = function.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut list = null_mut();
    // SAFETY: it takes the place of a pointer.
    let code = unsafe { function(&raw mut list) };
    // SAFETY: a module that says CKR_OK has put a pointer to its list there.
    let real = if code == CKR_OK { unsafe { list.as_ref() } } else { None };
    let real = *real.ok_or_else(|| format!("{}: C_GetFunctionList gave {code:#x}", path.display()))?;
    if let Some(socket) = env::var_os(SOCKET) {
        process::connect(&socket).map_err(|error| format!("{SOCKET} {}: {error}", socket.display()))?;
    }
    if let Some(file) = env::var_os(IVS) {
        ivs::open(&file).map_err(|error| format!("{IVS} {}: {error}", file.display()))?;
    }
    Ok(Module::new(true, real, Some(library)))
}

fn open(path: &OsString) -> Result<Library, String> {
    // SAFETY: a module's initialisers are as trustworthy as the module that the test would have loaded itself.
    unsafe { Library::new(path) }.map_err(|error| format!("{}: {error}", path.display()))
}

impl Module {
    fn new(allowed: bool, real: CK_FUNCTION_LIST, library: Option<Library>) -> Self {
        let mut ours = real;
        put_ours_in!(ours);
        let ours = leak(ours);
        let null_functions = leak(CK_FUNCTION_LIST_3_2 { version: VERSION_3_2, ..Default::default() });
        let interfaces = library.as_ref().map(interfaces_of).filter(|interfaces| !interfaces.is_empty());
        Self {
            allowed,
            real,
            ours,
            interfaces: interfaces.unwrap_or_else(|| vec![standard(from_ref(ours).cast())]),
            null_list: standard(null_mut()),
            null_functions: standard(from_ref(null_functions).cast()),
            _library: library,
        }
    }
}

/// The interfaces of a v3.x module with our functions put in, those of the vendor as they are.
fn interfaces_of(library: &Library) -> Vec<CK_INTERFACE> {
    // SAFETY: the symbol has this type in every PKCS#11 module that has it.
    let Ok(function) = (unsafe { library.get::<GetInterfaceList>(b"C_GetInterfaceList\0") }) else {
        return Vec::new();
    };
    let mut count = 0;
    // SAFETY: a null list asks for the count.
    if unsafe { function(null_mut(), &raw mut count) } != CKR_OK {
        return Vec::new();
    }
    let mut interfaces = vec![standard(null_mut()); usize::try_from(count).unwrap_or(0)];
    // SAFETY: there is room for `count` of them.
    if unsafe { function(interfaces.as_mut_ptr(), &raw mut count) } != CKR_OK {
        return Vec::new();
    }
    interfaces.truncate(usize::try_from(count).unwrap_or(0));
    for interface in &mut interfaces {
        // SAFETY: the module's name ends with a NUL.
        let name = unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) };
        if name == STANDARD && !interface.pFunctionList.is_null() {
            interface.pFunctionList = with_ours(interface.pFunctionList);
        }
    }
    interfaces
}

/// A copy of a list of the standard's interface, with our functions put in. Its version says how long it is.
fn with_ours(list: *mut c_void) -> *mut c_void {
    // SAFETY: every list begins with its version.
    let version = unsafe { *list.cast::<CK_VERSION>() };
    match (version.major, version.minor) {
        (3, 0 | 1) => {
            // SAFETY: a list of v3.0 or v3.1 is of this type.
            let mut list = unsafe { *list.cast::<CK_FUNCTION_LIST_3_0>() };
            put_ours_in!(list);
            list.C_GetInterfaceList = Some(calls::interface::C_GetInterfaceList);
            list.C_GetInterface = Some(calls::interface::C_GetInterface);
            from_ref(leak(list)).cast_mut().cast()
        }
        (3.., _) => {
            // SAFETY: a list of v3.2 begins like this type, and what comes after it is of no use here.
            let mut list = unsafe { *list.cast::<CK_FUNCTION_LIST_3_2>() };
            put_ours_in!(list);
            list.C_GetInterfaceList = Some(calls::interface::C_GetInterfaceList);
            list.C_GetInterface = Some(calls::interface::C_GetInterface);
            from_ref(leak(list)).cast_mut().cast()
        }
        _ => {
            // SAFETY: a list of v2.x is of this type.
            let mut list = unsafe { *list.cast::<CK_FUNCTION_LIST>() };
            put_ours_in!(list);
            from_ref(leak(list)).cast_mut().cast()
        }
    }
}

/// The standard's interface with this function list.
fn standard(list: *const c_void) -> CK_INTERFACE {
    let name = STANDARD.as_ptr().cast_mut().cast();
    CK_INTERFACE { pInterfaceName: name, pFunctionList: list.cast_mut(), flags: 0 }
}

fn leak<T>(list: T) -> &'static T {
    Box::leak(Box::new(list))
}
