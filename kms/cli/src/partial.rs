//! Files that are there whole or not at all: written under another name in the same directory, synced, and renamed.
//!
//! A run that is killed leaves at most a file that is called `.NAME.kms-partial-...`, which nobody takes for the whole; the
//! next run in that directory removes it ([`sweep`]). A run that is alive holds a lock (flock) on its own.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with},
    io::Errno,
};

use crate::clock;

const MARK: &[u8] = b".kms-partial-";
/// Of a file's name (NAME_MAX), less what is put around it.
const NAME_BYTES_MAX: usize = 255 - 60;

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and the new one is not kept.
    Refuse,
    /// It gives way.
    Replace,
}

/// A file that does not have its name yet. Dropped without [`Partial::keep`] it is gone.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// Makes an empty one for `target`. `mode` is narrowed by the umask.
    pub(crate) fn of(target: &Path, mode: u32) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| io::Error::other("this names no file"))?;
        let path = target.with_file_name(partial_name(name));
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        // Where there are no locks, nobody sweeps either.
        let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { file, path, target: target.to_owned() })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name once it is on stable storage. The name itself is once its directory was synced: [`sync_dir`].
    pub(crate) fn keep(self, existing: Existing) -> io::Result<()> {
        self.file.sync_all()?;
        match existing {
            Existing::Replace => fs::rename(&self.path, &self.target),
            Existing::Refuse => rename_to_new(&self.path, &self.target),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `keep` there is nothing under this name any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what runs that were killed left in `dir`, as far as that can be done.
pub(crate) fn sweep(dir: &Path) {
    let left = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in left.filter(|entry| is_partial(&entry.file_name())) {
        remove_if_dead(&entry.path());
    }
}

/// Removes a partial file unless somebody is still writing it.
pub(crate) fn remove_if_dead(path: &Path) {
    let Ok(file) = File::options().read(true).custom_flags(NOT_FOLLOWING).open(path) else { return };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        let _ = fs::remove_file(path);
    }
}

/// Whether `name` is one that only this program gives.
pub(crate) fn is_partial(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.windows(MARK.len()).any(|part| part == MARK)
}

/// The directory of `path`.
pub(crate) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in `dir` survive a crash.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// O_NOFOLLOW: a symbolic link is not opened. O_NONBLOCK: nor does a pipe make us wait.
pub(crate) const NOT_FOLLOWING: i32 =
    (rustix::fs::OFlags::NOFOLLOW.bits() | rustix::fs::OFlags::NONBLOCK.bits()) as i32;

fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::symlink_metadata(to) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
        result => Ok(result?),
    }
}

/// A name that no other run has.
fn partial_name(name: &OsStr) -> OsString {
    let name = name.as_bytes();
    let unique = format!("{}-{}", std::process::id(), clock::now().as_nanosecond());
    let bytes = [b".", &name[..name.len().min(NAME_BYTES_MAX)], MARK, unique.as_bytes()].concat();
    OsStr::from_bytes(&bytes).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_dropped_leaves_nothing_and_what_is_kept_has_its_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("a");
        drop(Partial::of(&target, 0o600).expect("made"));
        assert!(names(dir.path()).is_empty());
        let partial = Partial::of(&target, 0o600).expect("made");
        partial.file().write_all(b"whole").expect("written");
        assert!(is_partial(names(dir.path())[0].as_ref()), "{:?}", names(dir.path()));
        partial.keep(Existing::Refuse).expect("kept");
        assert_eq!(
            (names(dir.path()), fs::read(&target).expect("read")),
            (vec!["a".into()], b"whole".to_vec())
        );
    }

    #[test]
    fn a_name_that_is_taken_is_refused_or_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("a");
        fs::write(&target, "old").expect("written");
        let refused =
            Partial::of(&target, 0o600).expect("made").keep(Existing::Refuse).expect_err("it is there");
        assert_eq!(
            (refused.kind(), fs::read(&target).expect("read")),
            (ErrorKind::AlreadyExists, b"old".to_vec())
        );
        Partial::of(&target, 0o600).expect("made").keep(Existing::Replace).expect("replaced");
        assert_eq!((names(dir.path()), fs::read(&target).expect("read")), (vec!["a".into()], vec![]));
    }

    #[test]
    fn only_what_the_dead_left_is_swept() {
        let dir = tempfile::tempdir().expect("a directory");
        let alive = Partial::of(&dir.path().join("a"), 0o600).expect("made");
        for left in [".b.kms-partial-1-2", "b.kms-partial-1-2", ".c"] {
            fs::write(dir.path().join(left), "").expect("written");
        }
        sweep(dir.path());
        let alive_name = alive.path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
        assert_eq!(names(dir.path()), [&alive_name, ".c", "b.kms-partial-1-2"]);
    }

    #[test]
    fn the_longest_name_still_has_a_partial_one() {
        assert!(partial_name(OsStr::new(&"n".repeat(255))).len() <= 255);
    }
}
