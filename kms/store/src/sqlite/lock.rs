//! One server per database: an advisory lock on `kms.lock` beside it, held as long as the store is open.
//! The kernel gives it back however the process ends, so a lock file that lies about means nothing.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::OpenError;

/// Takes the lock of the database at `path`, or refuses at once.
pub(crate) fn take(path: &Path) -> Result<File, OpenError> {
    let path = path.with_file_name("kms.lock");
    let unusable = |why: std::io::Error| OpenError::Unusable { path: path.clone(), why: why.to_string() };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(path)),
        Err(errno) => Err(unusable(errno.into())),
    }
}
