//! Functions that meet no fault but those of every call.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE,
    CK_SESSION_INFO, CK_SLOT_ID, CK_ULONG,
};

use crate::{
    call::{real, through},
    grammar::function::Function,
};

pub(crate) unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    through(Function::GetMechanismInfo, None, |_| real!(C_GetMechanismInfo(slot, mechanism, info)))
}

macro_rules! in_a_session {
    ($($function:ident $c_name:ident($($argument:ident: $type:ty),*);)*) => {
        $(pub(crate) unsafe extern "C" fn $c_name(
            session: CK_SESSION_HANDLE,
            $($argument: $type,)*
        ) -> CK_RV {
            through(Function::$function, Some(session), |_| real!($c_name(session, $($argument),*)))
        })*
    };
}

in_a_session! {
    GetSessionInfo C_GetSessionInfo(info: *mut CK_SESSION_INFO);
    Logout C_Logout();
    DestroyObject C_DestroyObject(object: CK_OBJECT_HANDLE);
    GetAttributeValue C_GetAttributeValue(
        object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, template_len: CK_ULONG
    );
    FindObjectsInit C_FindObjectsInit(template: *mut CK_ATTRIBUTE, template_len: CK_ULONG);
    FindObjectsFinal C_FindObjectsFinal();
    GenerateRandom C_GenerateRandom(random: *mut CK_BYTE, random_len: CK_ULONG);
}
