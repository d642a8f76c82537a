//! The fault shim's controller: a PKCS#11 module that fails when a test says so.
//!
//! The shim (`softhsm/faulty-pkcs11`, a library of its own) stands before a real module and forwards to it. Every
//! process that loads it connects to a [`Controller`], which gives it a [`Script`] and keeps [`Report`]s: which rule
//! hit which call, each C_Login, each IV. For tests only, and refused by `kms serve`: see [`environment`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (token, dir) = (kms_softhsm::EphemeralToken::new()?, std::path::Path::new("/tmp/some"));
//! let controller = kms_softhsm::faults::Controller::start(dir)?;
//! let (shim, env) = (kms_softhsm::faults::module()?, controller.env(token.module()));
//! // Start a process with `env`, that loads `shim` as its module; then:
//! controller.set(&"C_Sign nth 1 times 1: return CKR_DEVICE_ERROR".parse()?);
//! # Ok(())
//! # }
//! ```

pub mod environment;
pub mod fault;
pub mod function;
pub mod line;
pub mod script;

mod library;
mod process;
mod record;

use std::{
    ffi::OsString,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use fault::{Fault, PinFlag};
pub use function::{Code, Function};
pub use library::module;
pub use line::GcmUse;
pub use script::{Malformed, Rule, Script, When};

use self::{
    environment::{DEV_FLAG, MODULE, SOCKET},
    record::Record,
};
use crate::Error;

/// Tells all processes of one token what to do wrong, and writes down what happened. Dropping it hangs up; the
/// processes then forward everything.
#[derive(Debug)]
pub struct Controller {
    socket: PathBuf,
    record: Arc<Record>,
}

/// Something that happened in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The process.
    pub pid: u32,
    /// What it was.
    pub event: Event,
}

/// What is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A rule hit this call. Written down before the fault happens.
    Fired {
        /// The rule.
        rule: Rule,
        /// The function that was called.
        function: Function,
    },
    /// C_Login is about to be called on the real module.
    Login {
        /// CK_USER_TYPE.
        user: u64,
    },
    /// The real C_Login returned.
    LoggedIn {
        /// What it returned.
        code: Code,
    },
    /// AES-GCM was about to encrypt (`record-iv`).
    Iv(GcmUse),
}

/// A process that is connected now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its place in the order in which processes came, from 0.
    pub ordinal: u64,
    /// The sessions that it has open.
    pub sessions: u32,
}

impl Controller {
    /// Listens on `dir/faults.sock`, without any rule.
    pub fn start(dir: &Path) -> Result<Self, Error> {
        let socket = dir.join("faults.sock");
        let listener = UnixListener::bind(&socket).map_err(Error::io(&socket))?;
        let record = Arc::new(Record::default());
        let theirs = Arc::clone(&record);
        std::thread::Builder::new()
            .name("faults".to_owned())
            .spawn(move || accept(&listener, &theirs))
            .map_err(Error::io(&socket))?;
        Ok(Self { socket, record })
    }

    /// Replaces the script, and begins all counts anew. Every C call of any process that begins after this returns
    /// sees the new script.
    pub fn set(&self, script: &Script) {
        self.record.set(script.clone());
    }

    /// Takes all rules away: as [`Self::set`] with an empty script.
    pub fn clear(&self) {
        self.set(&Script::default());
    }

    /// What a process needs in its environment to load the shim before `real_module`.
    pub fn env(&self, real_module: &Path) -> Vec<(OsString, OsString)> {
        vec![
            (DEV_FLAG.into(), "1".into()),
            (MODULE.into(), real_module.into()),
            (SOCKET.into(), self.socket.clone().into()),
        ]
    }

    /// Everything so far, in the order in which it happened.
    pub fn reports(&self) -> Vec<Report> {
        self.record.reports()
    }

    /// How often rules have hit since the script was set.
    pub fn fired(&self) -> u32 {
        self.record.fired()
    }

    /// The processes that are connected.
    pub fn processes(&self) -> Vec<Process> {
        self.record.processes()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.record.end();
        // Wakes `accept`, which looks up and leaves.
        if let Ok(stream) = UnixStream::connect(&self.socket) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &UnixListener, record: &Arc<Record>) {
    while !record.has_ended() {
        let Ok((stream, _)) = listener.accept() else { return };
        let record = Arc::clone(record);
        // A process that cannot be served finds its connection closed, and refuses to start.
        let _ = std::thread::Builder::new()
            .name("faulty process".to_owned())
            .spawn(move || process::serve(stream, &record));
    }
}
