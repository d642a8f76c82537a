//! Where bytes go: a file, which is there whole or not at all, or standard output, where a terminal is spared raw bytes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use zeroize::Zeroizing;

use crate::{
    failure::Failure,
    input::Source,
    output::{self, Format},
    partial::Existing,
};

/// Whether everybody may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Wrapped or sealed: the file may be replaced, and has the mode that others have.
    Sealed,
    /// A key or a plaintext: the file is a new one, of mode 0600.
    Secret,
}

/// Arguments that say where.
#[derive(Debug, Args)]
pub(crate) struct Destination {
    /// Where the result goes: a file, whole or not at all, or - for standard output. A secret goes to a new file that only
    /// its user can read
    #[arg(long, value_name = "FILE")]
    out: Option<Source>,
    /// Write the result as base64, e.g. to a terminal
    #[arg(long)]
    base64: bool,
    /// Write raw bytes to a terminal too
    #[arg(long)]
    force: bool,
}

impl Destination {
    /// Refuses what [`Destination::write`] would refuse to show, before there is a secret.
    pub(crate) fn check(&self, format: Format, content: Content) -> Result<(), Failure> {
        match self.file() {
            Some(path) if content == Content::Secret && is_taken(path) => Err(taken(path)),
            Some(_) => Ok(()),
            None if format != Format::Table || self.base64 => Ok(()),
            None => check_terminal(self.force),
        }
    }

    /// Whether [`Destination::write`] leaves the bytes to be printed among the other fields.
    pub(crate) fn prints_fields(&self, format: Format) -> bool {
        self.file().is_none() && format != Format::Table
    }

    /// Writes `bytes` to the file or, in the format for people, to standard output.
    pub(crate) fn write(&self, bytes: &[u8], content: Content) -> Result<(), Failure> {
        let encoded;
        let bytes = match self.base64 {
            true => {
                encoded = Zeroizing::new(BASE64_STANDARD.encode(bytes) + "\n");
                encoded.as_bytes()
            }
            false => bytes,
        };
        match self.file() {
            Some(path) => write_file(path, bytes, content),
            None => output::print_bytes(bytes),
        }
    }

    fn file(&self) -> Option<&Path> {
        match &self.out {
            Some(Source::File(path)) => Some(path),
            Some(Source::StandardInput) | None => None,
        }
    }
}

/// Refuses standard output if it is a terminal, on which raw bytes do harm.
pub(crate) fn check_terminal(force: bool) -> Result<(), Failure> {
    if force || !output::to_terminal() {
        return Ok(());
    }
    Err(Failure::usage("standard output is a terminal, and the result is raw bytes")
        .hint("name a file with --out, or pipe it; --base64 where there is one, or --force"))
}

/// Writes a file whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8], content: Content) -> Result<(), Failure> {
    let about = |path: &Path| Failure::about(path.display().to_string());
    match resolve(path).map_err(about(path))? {
        Target::Device(mut file) => file.write_all(bytes).map_err(about(path)),
        Target::File(target) => {
            let (mode, existing) = match content {
                Content::Sealed => (0o666, Existing::Replace),
                Content::Secret => (0o600, Existing::Refuse),
            };
            output::place_file(&target, bytes, mode, existing).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => taken(path),
                _ => about(path)(error),
            })
        }
    }
}

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Target {
    /// A file, or none yet. Its name is not that of a link to it.
    File(PathBuf),
    /// A pipe or a device, which is written to and never replaced.
    Device(File),
}

pub(crate) fn resolve(path: &Path) -> io::Result<Target> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => fs::canonicalize(path).map(Target::File),
        Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(_) => File::options().write(true).open(path).map(Target::Device),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Target::File(path.to_owned())),
        Err(error) => Err(error),
    }
}

fn is_taken(path: &Path) -> bool {
    path.is_file()
}

pub(crate) fn taken(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already", path.display()))
        .hint("remove it, or name another file: a secret is never written over")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_never_written_over_and_only_its_user_can_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        write_file(&path, b"one", Content::Secret).expect("a new file");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let failure = write_file(&path, b"two", Content::Secret).expect_err("it exists");
        assert!(failure.message().contains("exists already"), "{}", failure.message());
        write_file(&path, b"three", Content::Sealed).expect("replaced");
        assert_eq!(fs::read(&path).expect("read"), b"three");
    }

    #[test]
    fn a_link_stays_and_what_it_names_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        write_file(&link, b"new", Content::Sealed).expect("replaced");
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).expect("read"), b"new");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        write_file(Path::new("/dev/null"), b"x", Content::Secret).expect("written");
        assert!(matches!(resolve(Path::new("/dev/null")), Ok(Target::Device(_))));
    }
}
