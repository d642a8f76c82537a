//! Sessions and login (PKCS#11 v3.1 §5.6): sessions are counted over all processes, logins are reported.

use std::ffi::c_void;

use cryptoki_sys::{
    CK_FLAGS, CK_NOTIFY, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CKR_OK,
    CKR_SESSION_COUNT,
};

use crate::{
    call::{real, through},
    grammar::{
        fault::Fault,
        function::{Code, Function},
        line::Question,
    },
    process,
};

pub(crate) unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    through(Function::OpenSession, None, |hits| {
        let cap = hits.iter().find(|hit| matches!(hit.fault, Fault::SessionCap(_)));
        if !process::may_open(cap.map(|hit| hit.id)) {
            return CKR_SESSION_COUNT;
        }
        let code = real!(C_OpenSession(slot, flags, application, notify, session));
        // SAFETY: the real module has filled it.
        process::opened(slot, (code == CKR_OK).then(|| unsafe { *session }));
        code
    })
}

pub(crate) unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    through(Function::CloseSession, None, |_| {
        let code = real!(C_CloseSession(session));
        if code == CKR_OK {
            process::closed(|closed, _| closed == session);
        }
        code
    })
}

pub(crate) unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    through(Function::CloseAllSessions, None, |_| {
        let code = real!(C_CloseAllSessions(slot));
        if code == CKR_OK {
            process::closed(|_, of| of == slot);
        }
        code
    })
}

pub(crate) unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    pin_len: CK_ULONG,
) -> CK_RV {
    through(Function::Login, Some(session), |_| {
        process::tell(&Question::Login { user });
        let code = real!(C_Login(session, user, pin, pin_len));
        process::tell(&Question::LoggedIn { code: Code(code) });
        code
    })
}
