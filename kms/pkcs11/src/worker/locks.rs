//! Locks between processes that use one token: flock(2) on files in one directory, released by the kernel when a
//! process dies.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Where the locks are.
pub(crate) struct Locks {
    dir: PathBuf,
}

/// The lock that keeps changes of the token and searches apart. One per session: flock belongs to the open file.
pub(crate) struct ChangeLock(Option<File>);

/// A lock that is held; dropping it releases it.
#[must_use]
pub(crate) struct Held<'a>(Option<&'a File>);

/// The start-up lock, held.
#[must_use]
pub(crate) struct Starting(
    #[expect(dead_code, reason = "held, never read: closing the file releases the lock")] File,
);

impl Locks {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Waits until nobody else starts, and keeps others from starting.
    pub(crate) fn startup(&self) -> io::Result<Starting> {
        let file = self.open("hsm-startup.lock")?;
        file.lock()?;
        Ok(Starting(file))
    }

    /// The change lock, or one that does nothing where the profile needs none.
    pub(crate) fn changes(&self, needed: bool) -> io::Result<ChangeLock> {
        needed.then(|| self.open("hsm-changes.lock")).transpose().map(ChangeLock)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        File::options().create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(name))
    }
}

impl ChangeLock {
    /// For generating and destroying.
    pub(crate) fn changing(&self) -> io::Result<Held<'_>> {
        self.0.as_ref().map(|file| file.lock().map(|()| file)).transpose().map(Held)
    }

    /// For searching.
    pub(crate) fn searching(&self) -> io::Result<Held<'_>> {
        self.0.as_ref().map(|file| file.lock_shared().map(|()| file)).transpose().map(Held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            // Cannot fail on an open file; were it to, the lock would end with the process.
            let _ = file.unlock();
        }
    }
}
