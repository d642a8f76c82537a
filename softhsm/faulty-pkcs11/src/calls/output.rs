//! Functions that give bytes. With a null output they only say how many, and no rule sees that.

use cryptoki_sys::{CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKR_OK};

use crate::{
    call::{real, through},
    grammar::{fault::Fault, function::Function},
    process::Hit,
};

macro_rules! outputs {
    ($($function:ident $c_name:ident($($argument:ident: $type:ty),*);)*) => {
        $(pub(crate) unsafe extern "C" fn $c_name(
            session: CK_SESSION_HANDLE,
            $($argument: $type,)*
            output: *mut CK_BYTE,
            len: *mut CK_ULONG,
        ) -> CK_RV {
            if output.is_null() || len.is_null() {
                return real!($c_name(session, $($argument,)* output, len));
            }
            through(Function::$function, Some(session), |hits| {
                let code = real!($c_name(session, $($argument,)* output, len));
                if code == CKR_OK {
                    // SAFETY: neither is null, and the real module has written as many bytes as it says.
                    unsafe { spoil(output, &mut *len, hits) };
                }
                code
            })
        })*
    };
}

outputs! {
    Sign C_Sign(data: *mut CK_BYTE, data_len: CK_ULONG);
    SignFinal C_SignFinal();
    Encrypt C_Encrypt(data: *mut CK_BYTE, data_len: CK_ULONG);
    EncryptFinal C_EncryptFinal();
    Decrypt C_Decrypt(data: *mut CK_BYTE, data_len: CK_ULONG);
    DecryptFinal C_DecryptFinal();
    WrapKey C_WrapKey(mechanism: *mut CK_MECHANISM, wrapping: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE);
}

/// Flips bits and takes bytes away.
///
/// # Safety
/// There are `len` bytes at `output`.
unsafe fn spoil(output: *mut CK_BYTE, len: &mut CK_ULONG, hits: &[Hit]) {
    for hit in hits {
        match hit.fault {
            Fault::FlipBit(bit) if *len > 0 => {
                let bit = CK_ULONG::from(bit) % (*len * 8);
                let at = usize::try_from(bit / 8).unwrap_or(0);
                // SAFETY: `at` is below `len`.
                unsafe { *output.add(at) ^= 0x80 >> (bit % 8) };
            }
            Fault::Shorten => *len = len.saturating_sub(1),
            _ => {}
        }
    }
}
