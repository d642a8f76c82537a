//! What every intercepted call goes through, and the faults that any of them can meet.

use std::time::Duration;

use cryptoki_sys::{CK_RV, CK_SESSION_HANDLE};
use rustix::process::{Signal, getpid, kill_process};

use crate::{
    grammar::{fault::Fault, function::Function},
    process::{self, Hit},
};

/// Calls a function of the real module, which gives CKR_FUNCTION_NOT_SUPPORTED where it is missing.
macro_rules! real {
    ($name:ident($($argument:expr),* $(,)?)) => {
        match $crate::module::real().$name {
            // SAFETY: these are the arguments of the caller of this very function, or such as the standard has for
            // it; the real module stays loaded as long as the process lives.
            Some(function) => unsafe { function($($argument),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(crate) use real;

/// Lets the rules that hit this call act, in their order, and calls the real function unless one of them says not to.
/// `session` is the session that a forgotten login was in.
pub(crate) fn through(
    function: Function,
    session: Option<CK_SESSION_HANDLE>,
    call: impl FnOnce(&[Hit]) -> CK_RV,
) -> CK_RV {
    let hits = process::enter(function);
    for hit in &hits {
        match (hit.fault, session) {
            (Fault::Return(code), _) => return code.0,
            (Fault::DelayMs(ms), _) => delay(Duration::from_millis(ms.into())),
            (Fault::Hang, _) => hang(),
            (Fault::Crash, _) => crash(),
            (Fault::ForgetLogin, Some(session)) => drop(real!(C_Logout(session))),
            _ => {}
        }
    }
    let code = call(&hits);
    hits.iter().find_map(|hit| hit.code_after()).unwrap_or(code)
}

impl Hit {
    fn code_after(&self) -> Option<CK_RV> {
        match self.fault {
            Fault::CallThenReturn(code) => Some(code.0),
            _ => None,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the delay is the fault; there is no condition to await")]
fn delay(time: Duration) {
    std::thread::sleep(time);
}

fn hang() -> ! {
    loop {
        // Nobody unparks a thread that is the caller's.
        std::thread::park();
    }
}

/// Dies of a real SIGSEGV. A handler that takes the first one for a stack overflow of its own meets the next.
fn crash() -> ! {
    loop {
        let _ = kill_process(getpid(), Signal::SEGV);
    }
}
