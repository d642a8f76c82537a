//! One call on its way: through the queue, to a worker, to another when that one ends, and back.

use std::time::Instant;

use kms_core::hsm::Fault;
use tokio::sync::oneshot;

use super::queue::Place;
use crate::wire::{Operation, Outcome};

/// In how many endings a call may be among the suspects before it fails.
const ENDINGS_MAX: u8 = 2;

/// A call on its way in.
pub(super) struct NewCall {
    pub(super) place: Place,
    pub(super) operation: Operation,
    pub(super) deadline: Instant,
    /// Endings of workers that may have been at it.
    pub(super) endings: u8,
    /// Whether a worker that had it has ended: it has waited for its turn already.
    pub(super) repeated: bool,
}

/// What became of a call that was sent.
pub(super) enum Reply {
    /// The worker did it, or says why not.
    Answered(Result<Outcome, Fault>),
    /// Its worker has ended, and another may do it.
    Again(NewCall),
    /// No worker is there; it was sent to none.
    Released(NewCall),
}

/// What became of a call on its way in.
pub(super) enum Submitted {
    /// It is with a worker, or waits for its turn.
    Sent(oneshot::Receiver<Reply>),
    /// There is no worker; nothing was sent.
    Refused(NewCall),
}

/// A call and who waits for it.
pub(super) struct Call {
    /// `None` once the caller was told that its deadline passed. The place is held until the worker answers.
    pub(super) reply: Option<oneshot::Sender<Reply>>,
    pub(super) call: NewCall,
}

impl NewCall {
    pub(super) fn new(place: Place, operation: Operation, deadline: Instant) -> Self {
        Self { place, operation, deadline, endings: 0, repeated: false }
    }

    /// Together with who waits for it, if anybody does.
    pub(super) fn awaited(self, reply: Option<oneshot::Sender<Reply>>) -> Call {
        Call { reply, call: self }
    }

    /// What becomes of it when its worker ends with `fault`, having been at it perhaps.
    pub(super) fn ended(mut self, suspect: bool, fault: Fault) -> Reply {
        self.endings += u8::from(suspect);
        self.repeated = true;
        if self.operation.is_repeatable() && self.endings < ENDINGS_MAX {
            Reply::Again(self)
        } else {
            Reply::Answered(Err(fault))
        }
    }
}

impl Call {
    pub(super) fn place(&self) -> &Place {
        &self.call.place
    }

    pub(super) fn deadline(&self) -> Instant {
        self.call.deadline
    }

    pub(super) fn is_repeated(&self) -> bool {
        self.call.repeated
    }

    /// Whether its caller has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Tells its caller that the deadline has passed.
    pub(super) fn end_late(self) {
        if let Some(reply) = self.reply {
            let _ = reply.send(Reply::Answered(Err(Fault::DeadlineExceeded)));
        }
    }

    /// Gives it back to its caller: there is no worker.
    pub(super) fn release(self) {
        if let Some(reply) = self.reply {
            let _ = reply.send(Reply::Released(self.call));
        }
    }
}
