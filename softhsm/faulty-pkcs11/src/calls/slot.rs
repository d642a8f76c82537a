//! Slots and tokens (PKCS#11 v3.1 §5.5): an HSM that is not there, a PIN that was tried.

use cryptoki_sys::{
    CK_BBOOL, CK_RV, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED, CKR_OK,
};

use crate::{
    call::{real, through},
    grammar::{
        fault::{Fault, PinFlag},
        function::Function,
    },
};

pub(crate) unsafe extern "C" fn C_GetSlotList(
    token_present: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    if slots.is_null() || count.is_null() {
        return real!(C_GetSlotList(token_present, slots, count));
    }
    through(Function::GetSlotList, None, |hits| {
        if hits.iter().any(|hit| hit.fault == Fault::EmptySlotList) {
            // SAFETY: the caller's count is not null.
            unsafe { *count = 0 };
            return CKR_OK;
        }
        real!(C_GetSlotList(token_present, slots, count))
    })
}

pub(crate) unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    through(Function::GetTokenInfo, None, |hits| {
        let code = real!(C_GetTokenInfo(slot, info));
        let flags = hits.iter().map(|hit| match hit.fault {
            Fault::PinFlag(PinFlag::CountLow) => CKF_USER_PIN_COUNT_LOW,
            Fault::PinFlag(PinFlag::FinalTry) => CKF_USER_PIN_FINAL_TRY,
            Fault::PinFlag(PinFlag::Locked) => CKF_USER_PIN_LOCKED,
            _ => 0,
        });
        if code == CKR_OK {
            // SAFETY: the real module has filled it.
            unsafe { (*info).flags |= flags.fold(0, |all, flag| all | flag) };
        }
        code
    })
}
