//! The program `softhsm2-util`: making a token, and reading back what there is.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    io::write,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
};

use crate::{Error, install, token::Pins};

/// `softhsm2-util` with the module that it is to load.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    module: PathBuf,
}

/// Its name, for errors.
const PROGRAM: &str = "softhsm2-util";

/// What a program says of one slot.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) label: String,
    pub(crate) serial: String,
    pub(crate) initialised: bool,
    pub(crate) user_pin_set: bool,
}

impl Program {
    pub(crate) fn find() -> Result<Self, Error> {
        Ok(Self { path: install::program(PROGRAM, "apt-get install softhsm2")?, module: install::softhsm()? })
    }

    pub(crate) fn into_module(self) -> PathBuf {
        self.module
    }

    /// Initialises the free slot of the tokens that `conf` names, and returns what came of it.
    pub(crate) fn init_token(&self, conf: &Path, label: &str, pins: &Pins) -> Result<Slot, Error> {
        const ACTION: &str = "--init-token";
        let terminal = Terminal::with_input(&pins.as_typed())?;
        let mut command = self.command(conf, ACTION);
        command.args(["--free", "--label", label]).stdin(terminal.user_side);
        run(command, PROGRAM, ACTION)?;
        drop(terminal.program_side);
        let made = self.slots(conf)?.into_iter().find(|slot| slot.label == label && slot.user_pin_set);
        made.ok_or_else(|| Error::Program {
            program: PROGRAM,
            action: ACTION,
            output: format!("it reported success, but --show-slots shows no token {label:?} with a user PIN"),
        })
    }

    pub(crate) fn slots(&self, conf: &Path) -> Result<Vec<Slot>, Error> {
        const ACTION: &str = "--show-slots";
        let mut command = self.command(conf, ACTION);
        command.stdin(Stdio::null());
        run(command, PROGRAM, ACTION).map(|output| parse_slots(&output))
    }

    fn command(&self, conf: &Path, action: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.env("SOFTHSM2_CONF", conf).arg(action).arg("--module").arg(&self.module);
        command
    }
}

/// A pseudo-terminal on which the answers are typed ahead: the program takes a PIN from an argument, which
/// every user of the machine can read in `/proc`, or from a terminal.
struct Terminal {
    /// Kept open while the program runs: closing it hangs up.
    program_side: std::os::fd::OwnedFd,
    user_side: std::os::fd::OwnedFd,
}

impl Terminal {
    fn with_input(input: &str) -> Result<Self, Error> {
        let open = || {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let program_side = openpt(flags)?;
            grantpt(&program_side)?;
            unlockpt(&program_side)?;
            let user_side = ioctl_tiocgptpeer(&program_side, flags)?;
            // A terminal takes 4,095 bytes ahead; two PINs, each typed twice, are a hundred.
            let written = write(&program_side, input.as_bytes())?;
            debug_assert_eq!(written, input.len());
            Ok(Self { program_side, user_side })
        };
        open().map_err(|errno: rustix::io::Errno| Error::io(Path::new("/dev/ptmx"))(errno.into()))
    }
}

/// Runs `command` to its end and returns what it printed. `program` and `action` are for errors.
pub(crate) fn run(
    mut command: Command,
    program: &'static str,
    action: &'static str,
) -> Result<String, Error> {
    let path = PathBuf::from(command.get_program());
    let output = command.output().map_err(Error::io(&path))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let output = format!("{} ({})", text(&output.stderr).replace('\n', " "), output.status);
        Err(Error::Program { program, action, output })
    }
}

/// Blocks begin with `Slot N` at the margin; below it `Name:   value`.
fn parse_slots(output: &str) -> Vec<Slot> {
    let mut slots: Vec<Slot> = Vec::new();
    for line in output.lines() {
        if line.starts_with("Slot ") {
            slots.push(Slot::default());
        }
        let (Some(slot), Some((name, value))) = (slots.last_mut(), line.trim().split_once(':')) else {
            continue;
        };
        let value = value.trim();
        match name {
            "Label" => value.clone_into(&mut slot.label),
            "Serial number" => value.clone_into(&mut slot.serial),
            "Initialized" => slot.initialised = value == "yes",
            "User PIN init." => slot.user_pin_set = value == "yes",
            _ => {}
        }
    }
    slots
}
