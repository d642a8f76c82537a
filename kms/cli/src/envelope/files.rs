//! Which files: those that are named, and those in named folders. Symbolic links are not followed, and what killed runs
//! left is removed on the way.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::io::Errno;
use walkdir::WalkDir;

use crate::{failure::Failure, input::Source, partial};

#[derive(Debug, Args)]
pub(super) struct Files {
    /// The files; - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<Source>,
    /// Go into folders. Symbolic links are not followed
    #[arg(long, short)]
    recursive: bool,
}

/// What a name, or a place in a folder, turned out to be.
#[derive(Debug)]
pub(super) enum Found {
    StandardInput,
    /// A regular file that was named.
    Named(PathBuf),
    /// A regular file in a folder that was named.
    Walked(PathBuf),
    /// A symbolic link in a folder.
    Link(PathBuf),
    Failed(PathBuf, Failure),
}

impl Files {
    /// One alone.
    pub(super) fn one(source: Source) -> Self {
        Self { files: vec![source], recursive: false }
    }

    /// The only name, if it is one alone and no folder is gone into.
    pub(super) fn only(&self) -> Option<&Source> {
        match self.files.as_slice() {
            [only] if !self.recursive => Some(only),
            _ => None,
        }
    }

    /// Refuses standard input beside anything else.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.files.len() > 1 && self.files.contains(&Source::StandardInput) {
            true => {
                Err(Failure::usage("standard input goes alone").hint("name - once, and no files beside it"))
            }
            false => Ok(()),
        }
    }

    /// All of them, a folder's in the order of their names.
    pub(super) fn found(&self) -> impl Iterator<Item = Found> {
        let mut swept = HashSet::new();
        self.files.iter().flat_map(move |source| -> Box<dyn Iterator<Item = Found>> {
            let path = match source {
                Source::StandardInput => return Box::new(std::iter::once(Found::StandardInput)),
                Source::File(path) => path,
            };
            match self.named(path) {
                Ok(true) => Box::new(walk(path)),
                Ok(false) => {
                    let dir = partial::dir_of(path);
                    if swept.insert(dir.to_owned()) {
                        partial::sweep(dir);
                    }
                    Box::new(std::iter::once(Found::Named(path.clone())))
                }
                Err(failure) => Box::new(std::iter::once(Found::Failed(path.clone(), failure))),
            }
        })
    }

    /// Whether it is a folder to go into.
    fn named(&self, path: &Path) -> Result<bool, Failure> {
        let kind = fs::symlink_metadata(path).map_err(Failure::about(path.display()))?.file_type();
        if kind.is_symlink() {
            return Err(is_a_link(path));
        }
        match (kind.is_dir(), self.recursive) {
            (true, false) => Err(Failure::usage(format!("{} is a folder", path.display()))
                .hint("--recursive goes into folders")),
            (is_dir, _) => Ok(is_dir),
        }
    }
}

fn walk(root: &Path) -> impl Iterator<Item = Found> {
    let root = root.to_owned();
    let entries = WalkDir::new(&root).follow_links(false).sort_by_file_name().into_iter();
    entries.filter_map(move |entry| match entry {
        Ok(entry) if partial::is_partial(entry.file_name()) => {
            partial::remove_if_dead(entry.path());
            None
        }
        Ok(entry) if entry.file_type().is_file() => Some(Found::Walked(entry.into_path())),
        Ok(entry) if entry.file_type().is_symlink() => Some(Found::Link(entry.into_path())),
        // Folders come by themselves; pipes and devices are no files.
        Ok(_) => None,
        Err(error) => {
            let path = error.path().unwrap_or(&root).to_owned();
            let failure = Failure::about(path.display())(io::Error::from(error));
            Some(Found::Failed(path, failure))
        }
    })
}

/// Opens a regular file. A link is refused even if it took the file's place just now.
pub(crate) fn open_regular(path: &Path) -> Result<File, Failure> {
    let file = File::options().read(true).custom_flags(partial::NOT_FOLLOWING).open(path);
    let file = file.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP) => is_a_link(path),
        _ => Failure::about(path.display())(error),
    })?;
    match file.metadata().map_err(Failure::about(path.display()))?.is_file() {
        true => Ok(file),
        false => Err(Failure::usage(format!("{} is no regular file", path.display()))
            .hint("pipe it in, and name - for it")),
    }
}

fn is_a_link(path: &Path) -> Failure {
    Failure::usage(format!("{} is a symbolic link, and those are not followed", path.display()))
        .hint("name the file that it points to")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(paths: &[&Path], recursive: bool) -> Vec<String> {
        let files =
            Files { files: paths.iter().map(|path| Source::File(path.to_path_buf())).collect(), recursive };
        let name = |path: PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let told = files.found().map(|found| match found {
            Found::StandardInput => "-".to_owned(),
            Found::Named(path) => format!("named {}", name(path)),
            Found::Walked(path) => format!("walked {}", name(path)),
            Found::Link(path) => format!("link {}", name(path)),
            Found::Failed(path, failure) => format!("failed {}: {}", name(path), failure.message()),
        });
        told.collect()
    }

    #[test]
    fn folders_are_walked_in_order_links_are_not_followed_and_left_overs_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).expect("made");
        for name in ["b", "a", "sub/c", ".d.kms-partial-1-1", "sub/.c.kms-partial-1-1"] {
            fs::write(root.join(name), name).expect("written");
        }
        symlink(&root, root.join("sub/loop")).expect("linked");
        assert_eq!(found(&[&root], true), ["walked a", "walked b", "walked c", "link loop"]);
        assert!(!root.join(".d.kms-partial-1-1").exists() && !root.join("sub/.c.kms-partial-1-1").exists());
        let refused = found(&[&root, &root.join("a"), &root.join("sub/loop")], false);
        assert!(refused[0].ends_with("is a folder") && refused[1] == "named a", "{refused:?}");
        assert!(refused[2].ends_with("is a symbolic link, and those are not followed"), "{refused:?}");
    }

    #[test]
    fn a_link_and_a_device_are_not_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        fs::write(dir.path().join("file"), "").expect("written");
        symlink(dir.path().join("file"), &link).expect("linked");
        assert!(open_regular(&link).expect_err("a link").message().contains("symbolic link"));
        assert!(open_regular(Path::new("/dev/null")).expect_err("a device").message().contains("regular"));
    }
}
