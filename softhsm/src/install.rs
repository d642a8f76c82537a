//! Where Debian (and a developer's own build) put the tokens' modules and programs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::Error;

/// Debian's places, the multiarch ones last because the first is a link to them where it exists.
const SOFTHSM_MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

const P11_KIT_MODULES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
];

/// Below the target directory, where `scripts/setup test` puts it.
const KRYOPTIC_MODULE: &str = "tokens/libkryoptic_pkcs11.so";

/// SoftHSM's module: `SOFTHSM2_MODULE` when set, else the first that exists.
pub(crate) fn softhsm() -> Result<PathBuf, Error> {
    named("SOFTHSM2_MODULE").unwrap_or_else(|| {
        first_file(SOFTHSM_MODULES.into_iter().map(PathBuf::from)).ok_or(Error::NotInstalled {
            what: "SoftHSM's module libsofthsm2.so",
            cure: "apt-get install softhsm2",
        })
    })
}

/// Kryoptic's module: `KRYOPTIC_MODULE` when set, else the one in the target directory that this program lies in.
pub(crate) fn kryoptic() -> Result<PathBuf, Error> {
    named("KRYOPTIC_MODULE").unwrap_or_else(|| {
        let program = env::current_exe().unwrap_or_default();
        first_file(program.ancestors().map(|dir| dir.join(KRYOPTIC_MODULE))).ok_or(Error::NotInstalled {
            what: "Kryoptic's module libkryoptic_pkcs11.so",
            cure: "scripts/setup test",
        })
    })
}

/// The module that reaches a token over a socket.
pub(crate) fn p11_kit_client() -> Result<PathBuf, Error> {
    first_file(P11_KIT_MODULES.into_iter().map(PathBuf::from)).ok_or(Error::NotInstalled {
        what: "p11-kit's module p11-kit-client.so",
        cure: "apt-get install p11-kit-modules",
    })
}

/// A program, from `PATH`.
pub(crate) fn program(name: &'static str, cure: &'static str) -> Result<PathBuf, Error> {
    program_on(&env::var_os("PATH").unwrap_or_default(), name, cure)
}

fn program_on(path: &OsStr, name: &'static str, cure: &'static str) -> Result<PathBuf, Error> {
    first_file(env::split_paths(path).map(|dir| dir.join(name)))
        .ok_or(Error::NotInstalled { what: name, cure })
}

fn named(variable: &'static str) -> Option<Result<PathBuf, Error>> {
    let path = PathBuf::from(env::var_os(variable)?);
    Some(if Path::is_file(&path) { Ok(path) } else { Err(Error::NoSuchModule { variable, path }) })
}

fn first_file(mut paths: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_softhsm_is_told_in_one_line_what_to_install() {
        let error = program_on("/nonexistent".as_ref(), "softhsm2-util", "apt-get install softhsm2")
            .expect_err("there is no such directory");
        let text = error.to_string();
        assert!(text.contains("to bring it, run: apt-get install softhsm2"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
