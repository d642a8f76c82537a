//! What the controller knows: script, counts, processes and reports, all under one lock, so that an answer is true
//! when it is written and a new script reaches a connection whole.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Event, Process, Report, Script,
    fault::Fault,
    function::Function,
    line::{Answer, Question, RuleId},
    script::Rule,
};

#[derive(Debug, Default)]
pub(super) struct Record(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    script: Script,
    version: u64,
    /// How often each rule of the script has hit.
    fired: Vec<u32>,
    /// By ordinal.
    processes: BTreeMap<u64, Connected>,
    ordinal_next: u64,
    reports: Vec<Report>,
    ended: bool,
}

#[derive(Debug)]
struct Connected {
    pid: u32,
    sessions: u32,
    stream: UnixStream,
}

impl Record {
    /// Replaces the script and writes it to all processes.
    pub(super) fn set(&self, script: Script) {
        let mut state = self.lock();
        state.fired = vec![0; script.rules().len()];
        state.script = script;
        state.version += 1;
        let script = state.script_lines();
        for process in state.processes.values_mut() {
            process.write(&script);
        }
    }

    /// Lets a process in and gives it its ordinal and the script. `None` when the controller is going.
    pub(super) fn enter(&self, pid: u32, stream: UnixStream) -> Option<u64> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        let ordinal = state.ordinal_next;
        state.ordinal_next += 1;
        let welcome = format!("{}\n{}", Answer::Welcome { ordinal }, state.script_lines());
        let mut process = Connected { pid, sessions: 0, stream };
        process.write(&welcome);
        state.processes.insert(ordinal, process);
        Some(ordinal)
    }

    /// Writes down what process `ordinal` says, and then answers it.
    pub(super) fn answer(&self, ordinal: u64, question: Question) {
        let mut state = self.lock();
        let answer = if state.hear(ordinal, question) { Answer::Yes } else { Answer::No };
        if let Some(process) = state.processes.get_mut(&ordinal) {
            process.write(&format!("{answer}\n"));
        }
    }

    /// The process is gone, and its sessions with it.
    pub(super) fn leave(&self, ordinal: u64) {
        self.lock().processes.remove(&ordinal);
    }

    /// Hangs up on everybody.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        for process in state.processes.values() {
            process.hang_up();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        self.lock().reports.clone()
    }

    pub(super) fn fired(&self) -> u32 {
        self.lock().fired.iter().sum()
    }

    pub(super) fn processes(&self) -> Vec<Process> {
        let process = |(ordinal, of): (&u64, &Connected)| Process {
            pid: of.pid,
            ordinal: *ordinal,
            sessions: of.sessions,
        };
        self.lock().processes.iter().map(process).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn script_lines(&self) -> String {
        let head = Answer::Script { version: self.version, rules: self.script.rules().len() };
        format!("{head}\n{}", self.script)
    }

    fn hear(&mut self, ordinal: u64, question: Question) -> bool {
        let Some(pid) = self.processes.get(&ordinal).map(|process| process.pid) else { return false };
        let event = match question {
            Question::Hello { .. } => return false,
            Question::Fire { rule, function } => return self.fire(pid, rule, function),
            Question::Open { cap } => return self.open(ordinal, pid, cap),
            Question::Closed { sessions } => {
                if let Some(process) = self.processes.get_mut(&ordinal) {
                    process.sessions = process.sessions.saturating_sub(sessions);
                }
                return true;
            }
            Question::Login { user } => Event::Login { user },
            Question::LoggedIn { code } => Event::LoggedIn { code },
            Question::Iv(gcm) => Event::Iv(gcm),
        };
        self.reports.push(Report { pid, event });
        true
    }

    /// A rule of an earlier script, or one that has hit as often as it may, does not act.
    fn fire(&mut self, pid: u32, id: RuleId, function: Function) -> bool {
        let Some(rule) = self.rule(id).cloned() else { return false };
        let Some(fired) = self.fired.get_mut(id.rule) else { return false };
        if rule.times().is_some_and(|times| *fired >= times.get()) {
            return false;
        }
        *fired += 1;
        self.reports.push(Report { pid, event: Event::Fired { rule, function } });
        true
    }

    fn open(&mut self, ordinal: u64, pid: u32, cap: Option<RuleId>) -> bool {
        if let Some(id) = cap
            && let Some(Fault::SessionCap(sessions)) = self.rule(id).map(Rule::fault)
            && self.processes.values().map(|process| process.sessions).sum::<u32>() >= sessions
            && self.fire(pid, id, Function::OpenSession)
        {
            return false;
        }
        if let Some(process) = self.processes.get_mut(&ordinal) {
            process.sessions += 1;
        }
        true
    }

    fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.script.rules().get(id.rule).filter(|_| id.script == self.version)
    }
}

impl Connected {
    /// What a process does not take within the stream's timeout it will never read: it is hung, or gone.
    fn write(&mut self, text: &str) {
        if self.stream.write_all(text.as_bytes()).is_err() {
            self.hang_up();
        }
    }

    fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
