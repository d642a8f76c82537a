//! The director and the latch: no worker calls C_Login without leave, and none is replaced, served or reported before
//! the latch knows what came of its try.

use kms_core::pin_latch::Outcome;

use crate::{
    pool::{
        login::After,
        slot::{Login, Start},
    },
    wire::{Refusal, RefusalKind},
};

impl super::Director {
    /// Asks the latch for a worker that wants to call C_Login.
    pub(super) fn logging_in(&mut self, number: u16, pid: u32, token_serial: String) {
        let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) else { return };
        if start.login != Login::Before {
            return;
        }
        start.login = Login::Asked;
        match self.pin_refused.clone() {
            None => self.logins.take(number, pid, token_serial),
            Some(text) => {
                let refusal = Refusal { kind: RefusalKind::Pin, text };
                self.latch_spoke(number, pid, token_serial, Err(refusal));
            }
        }
    }

    /// Passes the latch's word on. It may have taken long: the worker may be gone.
    pub(super) fn latch_spoke(
        &mut self,
        number: u16,
        pid: u32,
        token_serial: String,
        verdict: Result<(), Refusal>,
    ) {
        let start = self.slot(number).and_then(|slot| slot.start_of(pid));
        let waits =
            |start: &&mut Start| start.login == Login::Asked && start.exit.is_none() && !start.link_closed;
        let waiting = start.filter(waits);
        let waiting = waiting.and_then(|start| start.link.clone().map(|link| (start, link)));
        match (waiting, verdict) {
            (Some((start, link)), Ok(())) => {
                // From here on its end would not pass for a harmless one.
                start.login = Login::Given { token_serial };
                link.answer_login(true);
            }
            (Some((start, link)), Err(refusal)) => {
                start.login = Login::Before;
                link.answer_login(false);
                self.refused(number, pid, refusal);
            }
            (None, Ok(())) => {
                self.logins.settle(number, pid, token_serial, Outcome::NotTried, After::Nothing);
            }
            (None, Err(refusal)) if refusal.kind == RefusalKind::Pin => self.note_failure(refusal),
            (None, Err(_)) => {}
        }
    }

    /// A worker has logged in: however it ends now, no PIN try is in doubt. It serves once that is kept.
    pub(super) fn logged_in(&mut self, number: u16, pid: u32) {
        self.settle(number, pid, Outcome::Succeeded, After::Nothing);
    }

    /// Tells the latch what came of a try, if a leave was given. Says whether it was.
    pub(super) fn settle(&mut self, number: u16, pid: u32, outcome: Outcome, after: After) -> bool {
        let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) else { return false };
        let Some(token_serial) = start.login.settle() else { return false };
        self.logins.settle(number, pid, token_serial, outcome, after);
        true
    }

    /// The latch knows; goes on where [`Self::settle`] left off.
    pub(super) async fn settled(&mut self, number: u16, pid: u32, after: After, refused: Option<String>) {
        if let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) {
            start.login = Login::Over;
        }
        let pin = refused.map(|text| Refusal { kind: RefusalKind::Pin, text });
        match after {
            After::Refuse(refusal) => self.refused(number, pid, pin.unwrap_or(refusal)),
            After::Bury(status) => {
                self.doubt(number);
                let text = format!("an HSM worker died while logging in ({status})");
                self.note_failure(pin.unwrap_or(Refusal { kind: RefusalKind::Passing, text }));
                self.down(number, false);
            }
            After::Nothing => self.go_on(number, pid).await,
        }
    }

    /// With what a worker did while the latch was being told: it became READY, or ended.
    async fn go_on(&mut self, number: u16, pid: u32) {
        let Some(start) = self.slot(number).and_then(|slot| slot.start_of(pid)) else { return };
        if let Some(ready) = start.ready.take() {
            self.ready(number, pid, ready).await;
        } else if let Some(status) = start.exit.take_if(|_| start.link_closed) {
            self.died_starting(number, pid, status);
        }
    }
}
