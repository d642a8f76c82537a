//! Where objects come to be (PKCS#11 v3.1 §5.7, §5.18), and get lost again.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKR_OK,
};

use crate::{
    call::{real, through},
    grammar::{fault::Fault, function::Function},
    objects,
    process::{self, Hit},
};

pub(crate) unsafe extern "C" fn C_CreateObject(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    template_len: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::CreateObject, Some(session), |hits| {
        let code = real!(C_CreateObject(session, template, template_len, object));
        lose(session, object, code, hits);
        code
    })
}

pub(crate) unsafe extern "C" fn C_GenerateKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    template_len: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::GenerateKey, Some(session), |hits| {
        let code = real!(C_GenerateKey(session, mechanism, template, template_len, key));
        lose(session, key, code, hits);
        code
    })
}

pub(crate) unsafe extern "C" fn C_GenerateKeyPair(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    public_template: *mut CK_ATTRIBUTE,
    public_len: CK_ULONG,
    private_template: *mut CK_ATTRIBUTE,
    private_len: CK_ULONG,
    public: *mut CK_OBJECT_HANDLE,
    private: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::GenerateKeyPair, Some(session), |hits| {
        let code = real!(C_GenerateKeyPair(
            session,
            mechanism,
            public_template,
            public_len,
            private_template,
            private_len,
            public,
            private
        ));
        lose(session, private, code, hits);
        code
    })
}

pub(crate) unsafe extern "C" fn C_UnwrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    unwrapping: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    wrapped_len: CK_ULONG,
    template: *mut CK_ATTRIBUTE,
    template_len: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    through(Function::UnwrapKey, Some(session), |hits| {
        let code = real!(C_UnwrapKey(
            session,
            mechanism,
            unwrapping,
            wrapped,
            wrapped_len,
            template,
            template_len,
            key
        ));
        lose(session, key, code, hits);
        code
    })
}

/// Loses the object that was just made, now or later.
fn lose(session: CK_SESSION_HANDLE, object: *mut CK_OBJECT_HANDLE, code: CK_RV, hits: &[Hit]) {
    let calls = hits.iter().find_map(|hit| match hit.fault {
        Fault::LoseObject(calls) => Some(calls),
        _ => None,
    });
    if code == CKR_OK
        && let Some(calls) = calls
        && let Some(slot) = objects::slot(session)
    {
        // SAFETY: the real module has filled it.
        let object = unsafe { *object };
        if calls == 0 { objects::destroy(slot, object) } else { process::doom(slot, object, calls) }
    }
}
