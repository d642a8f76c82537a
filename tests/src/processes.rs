//! The processes of a running service, as proc(5) shows them.

use std::{fs, io, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its parent's id.
    pub parent: Pid,
    /// Its arguments, its own name first.
    pub command: Vec<String>,
}

/// A process and all that descend from it, at one moment.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The first process: `kms dev`, or `kms serve`.
    pub root: Pid,
    descendants: Vec<Process>,
}

impl Tree {
    /// Reads it.
    pub fn of(root: Pid) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // A process may go while it is read.
            all.extend(Process::read(&entry?.path()));
        }
        let mut descendants: Vec<Process> = Vec::new();
        let mut generation = vec![root];
        while !generation.is_empty() {
            let children: Vec<_> = all.iter().filter(|p| generation.contains(&p.parent)).cloned().collect();
            generation = children.iter().map(|p| p.pid).collect();
            descendants.extend(children);
        }
        Ok(Self { root, descendants })
    }

    /// The processes that have loaded the PKCS#11 module, or are about to.
    pub fn workers(&self) -> Vec<Pid> {
        self.named("hsm-worker").collect()
    }

    /// The process that callers talk to.
    pub fn front(&self) -> Option<Pid> {
        self.named("serve-front").next()
    }

    /// The process that starts the front and the workers; the root itself when that is `kms serve`.
    pub fn parent(&self) -> Pid {
        self.named("serve").next().unwrap_or(self.root)
    }

    /// All of them, the root too.
    pub fn pids(&self) -> Vec<Pid> {
        [self.root].into_iter().chain(self.descendants.iter().map(|p| p.pid)).collect()
    }

    fn named(&self, subcommand: &str) -> impl Iterator<Item = Pid> {
        let ours = move |p: &&Process| p.command.get(1).is_some_and(|argument| argument == subcommand);
        self.descendants.iter().filter(ours).map(|p| p.pid)
    }
}

impl Process {
    /// The process of a directory in /proc; `None` when it is none, has gone, or is dead and unreaped.
    fn read(dir: &Path) -> Option<Self> {
        let pid = dir.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // "pid (name) state ppid ...", and the name may hold anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let command = fs::read_to_string(dir.join("cmdline")).ok()?;
        let command = command.split_terminator('\0').map(str::to_owned).collect();
        let alive = !matches!(state, "Z" | "X");
        alive.then_some(Self { pid: Pid::from_raw(pid)?, parent: Pid::from_raw(parent)?, command })
    }

    /// Whether the process with this id runs (a dead one that nobody has reaped does not).
    pub fn runs(pid: Pid) -> bool {
        Self::read(Path::new(&format!("/proc/{}", pid.as_raw_nonzero()))).is_some()
    }
}

/// Sends a signal. A process that has gone already is no error.
pub fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
