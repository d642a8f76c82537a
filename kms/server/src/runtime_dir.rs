//! The directory where the front and the workers meet: only this user may enter it.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::clock::entropy;

/// Mode of the directory.
const PRIVATE: u32 = 0o700;

/// A private directory; one that was made fresh is removed at the end.
#[derive(Debug)]
pub(crate) struct RuntimeDir {
    path: PathBuf,
    fresh: bool,
}

impl RuntimeDir {
    /// `configured`, made if absent; else a fresh directory in `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR` or
    /// `/tmp`.
    pub(crate) fn open(configured: Option<&Path>) -> anyhow::Result<Self> {
        match configured {
            Some(path) => Self::configured(path),
            None => Self::fresh_in(&base()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn configured(path: &Path) -> anyhow::Result<Self> {
        match make(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("runtime.dir: cannot make {}", path.display()))?,
        }
        Self::refuse_unless_private(path).context("runtime.dir")?;
        Ok(Self { path: path.to_owned(), fresh: false })
    }

    /// Whether `path` is a directory that only this user may enter; the error says what to do.
    pub(crate) fn refuse_unless_private(path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at {shown}"))?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            bail!("{shown} is not a directory of this user; name one that is, or none");
        }
        if found.permissions().mode() & 0o777 != PRIVATE {
            bail!("{shown} is open to others; chmod 700 {shown}");
        }
        Ok(())
    }

    /// `mkdir` fails when somebody was faster, so nobody else's directory or link is ever taken.
    fn fresh_in(base: &Path) -> anyhow::Result<Self> {
        let mut random = [0; 8];
        entropy(&mut random)?;
        let path = base.join(format!("kms-{:016x}", u64::from_be_bytes(random)));
        make(&path).with_context(|| {
            format!("cannot make a runtime directory in {}; name one as runtime.dir", base.display())
        })?;
        Ok(Self { path, fresh: true })
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        if self.fresh
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, dir = %self.path.display(), "the runtime directory was not removed");
        }
    }
}

/// systemd names several directories with colons between them; the first is ours.
fn base() -> PathBuf {
    let named = |variable| env::var_os(variable).filter(|value| !value.is_empty());
    let systemd = named("RUNTIME_DIRECTORY").and_then(|dirs| env::split_paths(&dirs).next());
    systemd.or_else(|| named("XDG_RUNTIME_DIR").map(PathBuf::from)).unwrap_or_else(|| PathBuf::from("/tmp"))
}

fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(PRIVATE).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_that_others_may_enter_and_a_link_are_refused() {
        let base = tempfile::tempdir().expect("a directory");
        let open = base.path().join("open");
        fs::DirBuilder::new().mode(0o755).create(&open).expect("made");
        let refused = RuntimeDir::open(Some(&open)).expect_err("open to others");
        assert!(format!("{refused:#}").contains("chmod 700"), "{refused:#}");
        let private = base.path().join("private");
        make(&private).expect("made");
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&private, &link).expect("linked");
        assert!(RuntimeDir::open(Some(&link)).is_err());
    }

    #[test]
    fn a_configured_directory_is_made_private_and_stays() {
        let base = tempfile::tempdir().expect("a directory");
        let path = base.path().join("run");
        drop(RuntimeDir::open(Some(&path)).expect("made"));
        assert_eq!(mode(&path), PRIVATE);
        drop(RuntimeDir::open(Some(&path)).expect("there already"));
        assert!(path.is_dir());
    }

    #[test]
    fn a_fresh_directory_is_private_and_goes() {
        let base = tempfile::tempdir().expect("a directory");
        let dir = RuntimeDir::fresh_in(base.path()).expect("made");
        let path = dir.path().to_owned();
        assert_eq!(mode(&path), PRIVATE);
        drop(dir);
        assert!(!path.exists());
    }
}
