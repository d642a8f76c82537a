//! Where Debian (and a developer's own build) put SoftHSM.

use std::{env, ffi::OsStr, path::PathBuf};

use crate::Error;

/// Debian's places, the multiarch ones last because the first is a link to them where it exists.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The PKCS#11 module: `SOFTHSM2_MODULE` when set, else the first that exists.
pub(crate) fn module() -> Result<PathBuf, Error> {
    if let Some(named) = env::var_os("SOFTHSM2_MODULE") {
        let named = PathBuf::from(named);
        return if named.is_file() { Ok(named) } else { Err(Error::NoSuchModule(named)) };
    }
    first_file(MODULES.into_iter().map(PathBuf::from)).ok_or(Error::NotInstalled("module libsofthsm2.so"))
}

/// The administration program, from `PATH`.
pub(crate) fn program() -> Result<PathBuf, Error> {
    program_on(&env::var_os("PATH").unwrap_or_default())
}

fn program_on(path: &OsStr) -> Result<PathBuf, Error> {
    first_file(env::split_paths(path).map(|dir| dir.join("softhsm2-util")))
        .ok_or(Error::NotInstalled("program softhsm2-util"))
}

fn first_file(mut paths: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_softhsm_is_told_in_one_line_what_to_install() {
        let error = program_on("/nonexistent".as_ref()).expect_err("there is no such directory");
        let text = error.to_string();
        assert!(text.contains("install it: apt-get install softhsm2"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
