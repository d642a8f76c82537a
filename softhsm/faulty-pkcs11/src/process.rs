//! What the shim knows in this process: the script with its counts, the open sessions, the objects that are to be
//! lost. All under one lock, which no fault and no call of the real module is under.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{
    grammar::{
        fault::Fault,
        function::Function,
        line::{Question, RuleId},
        script::{Rule, Script},
    },
    link::{Heard, Link},
    objects,
};

static PROCESS: Mutex<Process> = Mutex::new(Process {
    link: None,
    ordinal: 0,
    script: 0,
    rules: Vec::new(),
    sessions: BTreeMap::new(),
    doomed: Vec::new(),
});

struct Process {
    /// `None` without a controller, or when it has gone.
    link: Option<Link>,
    ordinal: u64,
    script: u64,
    rules: Vec<Armed>,
    sessions: BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>,
    doomed: Vec<Doomed>,
}

struct Armed {
    rule: Rule,
    /// Calls of its functions since it came.
    calls: u64,
}

/// An object that is to be lost.
struct Doomed {
    slot: CK_SLOT_ID,
    object: CK_OBJECT_HANDLE,
    calls_left: u32,
}

/// A rule that hits a call.
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) id: RuleId,
    pub(crate) fault: Fault,
}

/// Connects to the controller and takes its first script.
pub(crate) fn connect(socket: &OsStr) -> io::Result<()> {
    let mut link = Link::connect(socket)?;
    link.say(&Question::Hello { pid: std::process::id() })?;
    let mut process = lock();
    loop {
        match link.wait()? {
            Heard::Welcome { ordinal } => process.ordinal = ordinal,
            Heard::Script { version, script } => {
                process.arm(version, script);
                break;
            }
            Heard::Answer(_) => return Err(io::Error::other("an answer to no question")),
        }
    }
    process.link = Some(link);
    Ok(())
}

/// A call of `function` begins: the rules that hit it, each with leave to act.
pub(crate) fn enter(function: Function) -> Vec<Hit> {
    let (hits, lost) = {
        let mut process = lock();
        process.catch_up();
        (process.hit(function), process.lose())
    };
    for Doomed { slot, object, .. } in lost {
        objects::destroy(slot, object);
    }
    hits
}

/// Tells the controller something that it only writes down.
pub(crate) fn tell(question: &Question) {
    lock().ask(question);
}

/// Whether a session may be opened, as far as `cap` is concerned. It counts as open from now on.
pub(crate) fn may_open(cap: Option<RuleId>) -> bool {
    lock().ask(&Question::Open { cap }).unwrap_or(true)
}

/// The session that was allowed is open, or is not.
pub(crate) fn opened(slot: CK_SLOT_ID, session: Option<CK_SESSION_HANDLE>) {
    let mut process = lock();
    match session {
        Some(session) => drop(process.sessions.insert(session, slot)),
        None => drop(process.ask(&Question::Closed { sessions: 1 })),
    }
}

/// Sessions for which `which` holds are closed.
pub(crate) fn closed(which: impl Fn(CK_SESSION_HANDLE, CK_SLOT_ID) -> bool) {
    let mut process = lock();
    let before = process.sessions.len();
    process.sessions.retain(|session, slot| !which(*session, *slot));
    let sessions = u32::try_from(before - process.sessions.len()).unwrap_or(u32::MAX);
    if sessions > 0 {
        process.ask(&Question::Closed { sessions });
    }
}

/// `object` is lost after this many further calls.
pub(crate) fn doom(slot: CK_SLOT_ID, object: CK_OBJECT_HANDLE, calls_left: u32) {
    lock().doomed.push(Doomed { slot, object, calls_left });
}

impl Process {
    fn arm(&mut self, version: u64, script: Script) {
        self.script = version;
        self.rules = script.rules().iter().map(|rule| Armed { rule: rule.clone(), calls: 0 }).collect();
    }

    /// Takes the newest script that has arrived.
    fn catch_up(&mut self) {
        while let Some(link) = &mut self.link {
            match link.arrived() {
                Ok(None) => return,
                Ok(Some(Heard::Script { version, script })) => self.arm(version, script),
                Ok(Some(_)) | Err(_) => self.hang_up(),
            }
        }
    }

    fn hit(&mut self, function: Function) -> Vec<Hit> {
        let (script, ordinal) = (self.script, self.ordinal);
        let mut hits = Vec::new();
        for (place, Armed { rule, calls }) in self.rules.iter_mut().enumerate() {
            if rule.is_for(function) {
                *calls += 1;
                if rule.when().hits(*calls, ordinal, place) {
                    hits.push(Hit { id: RuleId { script, rule: place }, fault: rule.fault() });
                }
            }
        }
        hits.retain(|hit| match hit.fault {
            // The controller decides on each session, and a recorded IV is no fault.
            Fault::SessionCap(_) | Fault::RecordIv => true,
            _ => self.ask(&Question::Fire { rule: hit.id, function }) == Some(true),
        });
        hits
    }

    fn lose(&mut self) -> Vec<Doomed> {
        let (lost, mut left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.doomed).into_iter().partition(|doomed| doomed.calls_left == 0);
        for doomed in &mut left {
            doomed.calls_left -= 1;
        }
        self.doomed = left;
        lost
    }

    /// `None` when there is nobody to ask.
    fn ask(&mut self, question: &Question) -> Option<bool> {
        let link = self.link.as_mut()?;
        let mut heard = link.say(question).and_then(|()| link.wait());
        while let Ok(Heard::Script { version, script }) = heard {
            self.arm(version, script);
            heard = self.link.as_mut()?.wait();
        }
        match heard {
            Ok(Heard::Answer(yes)) => Some(yes),
            _ => {
                self.hang_up();
                None
            }
        }
    }

    /// Without a controller everything is forwarded.
    fn hang_up(&mut self) {
        self.link = None;
        self.rules.clear();
    }
}

fn lock() -> MutexGuard<'static, Process> {
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}
