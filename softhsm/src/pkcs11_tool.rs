//! The program `pkcs11-tool` (OpenSC): making a token of a module that brings no program of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Error, install,
    program::{Slot, run},
    token::Pins,
};

/// `pkcs11-tool` with the module that it is to load, and the variable that leads the module to its configuration.
pub(crate) struct Pkcs11Tool<'a> {
    pub(crate) module: &'a Path,
    pub(crate) variable: &'static str,
    pub(crate) conf: &'a Path,
}

/// Its name, for errors.
const PROGRAM: &str = "pkcs11-tool";
/// It takes PINs from variables: unlike arguments, only the same user can read those.
const SO_PIN: &str = "KMS_SO_PIN";
const USER_PIN: &str = "KMS_USER_PIN";

impl Pkcs11Tool<'_> {
    /// Initialises the token in slot 0, sets both PINs, and returns what came of it.
    pub(crate) fn init_token(&self, label: &str, pins: &Pins) -> Result<Slot, Error> {
        const ACTION: &str = "--init-token";
        let so_pin = format!("env:{SO_PIN}");
        let mut init = self.command(pins)?;
        init.args([ACTION, "--slot", "0", "--label", label, "--so-pin", &so_pin]);
        run(init, PROGRAM, ACTION)?;
        let mut set = self.command(pins)?;
        set.args(["--init-pin", "--slot", "0", "--login", "--login-type", "so", "--so-pin", &so_pin])
            .args(["--new-pin", &format!("env:{USER_PIN}")]);
        run(set, PROGRAM, "--init-pin")?;
        let mut list = self.command(pins)?;
        list.arg("--list-token-slots");
        let output = run(list, PROGRAM, "--list-token-slots")?;
        let made = parse_slots(&output).into_iter().find(|slot| slot.label == label && slot.user_pin_set);
        made.ok_or_else(|| Error::Program {
            program: PROGRAM,
            action: ACTION,
            output: format!("it reported success, but shows no token {label:?} with a user PIN"),
        })
    }

    fn command(&self, pins: &Pins) -> Result<Command, Error> {
        let program: PathBuf = install::program(PROGRAM, "apt-get install opensc")?;
        let mut command = Command::new(program);
        command
            .env(self.variable, self.conf)
            .env(SO_PIN, pins.security_officer())
            .env(USER_PIN, pins.user())
            .arg("--module")
            .arg(self.module)
            .stdin(Stdio::null());
        Ok(command)
    }
}

/// Blocks begin with `Slot N` at the margin; below it `name : value`.
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
        match name.trim() {
            "token label" => value.clone_into(&mut slot.label),
            "serial num" => value.clone_into(&mut slot.serial),
            "token flags" => {
                slot.initialised = value.contains("token initialized");
                slot.user_pin_set = value.contains("PIN initialized");
            }
            _ => {}
        }
    }
    slots
}
