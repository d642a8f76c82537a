//! A credential that is shown once: in a new file, or on standard output.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use serde::Serialize;

use crate::{
    failure::Failure,
    output::{self, Format},
};

/// Where a credential goes, made ready before there is one: what cannot be kept must not be made.
pub(crate) struct Kept(Option<(File, PathBuf)>);

impl Kept {
    /// In the new file `out`, or on standard output.
    pub(crate) fn at(out: Option<PathBuf>) -> Result<Self, Failure> {
        let open = |path: PathBuf| output::create_new_secret_file(&path).map(|file| (file, path));
        out.map(open).transpose().map(Self)
    }

    /// None was made.
    pub(crate) fn give_up(self) {
        if let Some((_, path)) = self.0 {
            // Empty, and ours; if it stays, the next attempt says so.
            let _ = fs::remove_file(path);
        }
    }

    /// Writes `secret` to the file and prints `item`, or prints `with_secret`. `remedy` says what to do when nobody saw it.
    pub(crate) fn keep(
        self,
        secret: &str,
        format: Format,
        item: &impl Serialize,
        with_secret: &impl Serialize,
        remedy: &str,
    ) -> Result<(), Failure> {
        match self.0 {
            Some((mut file, path)) => {
                writeln!(file, "{secret}")
                    .and_then(|()| file.sync_all())
                    .map_err(Failure::about(path.display()))?;
                format.print_one(item)
            }
            None => {
                output::note(
                    "The credential is shown this once: keep it in a file that only its user can read.",
                );
                output::print_credential(&format.one(with_secret)?, remedy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_before_the_credential_and_gone_when_none_was_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("credential");
        let kept = Kept::at(Some(path.clone())).expect("a new file");
        assert!(path.exists());
        assert!(Kept::at(Some(path.clone())).is_err(), "never written over");
        kept.give_up();
        assert!(!path.exists());
    }
}
