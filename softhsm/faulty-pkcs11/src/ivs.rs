//! A file that names every use of a key with AES-GCM: for runs of millions, in which a controller would be asked too
//! often and remember too much. A line is that of [`Question::Iv`], written whole by one write(2), so that processes
//! may share the file and be killed at any moment.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    sync::OnceLock,
};

use crate::grammar::line::{GcmUse, Question};

static FILE: OnceLock<File> = OnceLock::new();

/// Opens it, for this process.
pub(crate) fn open(path: &OsStr) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    FILE.set(file).map_err(|_| io::Error::other("it is open already"))
}

/// Whether uses are written down.
pub(crate) fn are_recorded() -> bool {
    FILE.get().is_some()
}

/// Writes one down.
pub(crate) fn append(used: GcmUse) -> io::Result<()> {
    let Some(mut file) = FILE.get() else { return Ok(()) };
    file.write_all(format!("{}\n", Question::Iv(used)).as_bytes())
}
