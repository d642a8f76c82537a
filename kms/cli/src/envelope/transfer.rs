//! Sealing and opening of files and pipes: from where to where, and what is in the way. The bytes themselves are the
//! SDK's business.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, IsTerminal as _, Read},
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use kms_client::envelope::{EnvelopeContext, Envelopes};
use serde::Serialize;

use super::{
    SEALED,
    files::{Files, Found, open_regular},
    tally::{FailedFile, Failures, counted},
};
use crate::{
    destination::{self, Target, check_terminal},
    failure::Failure,
    input::Source,
    output::{self, Format},
    partial::{self, Existing, Partial},
    progress::Bar,
};

/// Shorter files are done before a bar could be read: 1 MiB.
const SHOWN_BYTES_MIN: u64 = 1 << 20;

/// Where results go.
#[derive(Debug, Args)]
pub(crate) struct Placement {
    /// Where the result of the only file goes; - for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<Source>,
    /// What to do where the result is there already
    #[arg(long, value_enum, default_value_t = OnExisting::Refuse)]
    pub(crate) existing: OnExisting,
    /// Write raw bytes to a terminal too
    #[arg(long)]
    pub(crate) force: bool,
}

// Comments and not documentation: they would make every help page twice as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExisting {
    // The file counts as failed.
    Refuse,
    // It is taken for done: how to go on with what was cut off.
    Skip,
    Replace,
}

/// In which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Seal,
    Open,
}

/// One command's work.
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) envelopes: Envelopes,
    pub(super) context: EnvelopeContext,
    pub(super) placement: Placement,
}

/// What was done, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Summary<'a> {
    files: u64,
    bytes: u64,
    there_already: u64,
    links_not_followed: u64,
    failed: u64,
    failures: &'a [FailedFile],
}

impl Transfer {
    pub(super) async fn run(self, files: &Files, format: Format) -> Result<(), Failure> {
        files.check()?;
        let to_stdout = self.goes_to_stdout(files)?;
        let (mut summary, mut failures, mut dirs) =
            (Summary::default(), Failures::default(), BTreeSet::new());
        let of_one = files.only().is_some();
        let bar = Arc::new(if of_one { Bar::of_bytes() } else { Bar::of_counts("files") });
        let total = if output::watched() && !of_one { files.found().count() as u64 } else { 0 };
        for (number, found) in (1..).zip(files.found()) {
            let (path, done) = self.one(found, to_stdout, of_one.then_some(&bar)).await;
            match done {
                Ok(Done::Placed { bytes, dir }) => {
                    summary.files += 1;
                    summary.bytes += bytes;
                    dirs.insert(dir);
                }
                Ok(Done::Piped | Done::NotMeant) => {}
                Ok(Done::ThereAlready) => summary.there_already += 1,
                Ok(Done::Link) => {
                    let name = output::one_line(&path.display().to_string());
                    bar.say(&format!("{name} is a symbolic link, and not followed"));
                    summary.links_not_followed += 1;
                }
                Err(failure) => failures.add(&path, failure),
            }
            if total > 0 {
                bar.show(self.direction.step(), number, total.max(number));
            }
        }
        drop(bar);
        // Once for all: what a crash takes before that is made again from what is still there.
        for dir in &dirs {
            partial::sync_dir(dir).map_err(Failure::about(dir.display()))?;
        }
        if !to_stdout && (!of_one || failures.count() == 0) {
            (summary.failed, summary.failures) = (failures.count(), failures.named());
            format.print_text_or(&summary.text(self.direction), &summary)?;
        }
        failures.end(of_one)
    }

    /// Whether the plaintext or the envelope is what standard output gets, and nothing else.
    fn goes_to_stdout(&self, files: &Files) -> Result<bool, Failure> {
        match (files.only(), &self.placement.out) {
            (Some(_), Some(Source::StandardInput)) | (Some(Source::StandardInput), None) => {
                check_terminal(self.placement.force).map(|()| true)
            }
            (None, Some(_)) => {
                Err(Failure::usage("--out is for one file")
                    .hint("without it each result is put beside its file"))
            }
            _ => Ok(false),
        }
    }

    async fn one(
        &self,
        found: Found,
        to_stdout: bool,
        bar: Option<&Arc<Bar>>,
    ) -> (PathBuf, Result<Done, Failure>) {
        match found {
            Found::StandardInput => {
                let stdin = io::stdin();
                if stdin.is_terminal() {
                    output::note("reading from the terminal; end with Ctrl-D");
                }
                let done = match &self.placement.out {
                    Some(Source::File(target)) => self.write(stdin, target, 0o600).await,
                    _ => self.pipe(stdin).await,
                };
                (PathBuf::from("standard input"), done)
            }
            Found::Walked(path) if !self.direction.wants(&path) => (path, Ok(Done::NotMeant)),
            Found::Walked(path) | Found::Named(path) => {
                let done = self.file(&path, to_stdout, bar).await;
                (path, done)
            }
            Found::Link(path) => (path, Ok(Done::Link)),
            Found::Failed(path, failure) => (path, Err(failure)),
        }
    }

    async fn file(&self, path: &Path, to_stdout: bool, bar: Option<&Arc<Bar>>) -> Result<Done, Failure> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(Failure::about(path.display()))?;
        let bar = bar.filter(|_| metadata.len() >= SHOWN_BYTES_MIN).map(Arc::clone);
        let reader = Watched { file, bar, step: self.direction.step(), done: 0, of: metadata.len() };
        if to_stdout {
            return self.pipe(reader).await;
        }
        let target = match &self.placement.out {
            Some(Source::File(target)) => target.clone(),
            _ => self.direction.target_of(path)?,
        };
        let mode = match self.direction {
            // Whoever may read what it is made of may read it too; it is nothing to be executed.
            Direction::Seal => metadata.permissions().mode() & 0o666,
            Direction::Open => 0o600,
        };
        self.write(reader, &target, mode).await
    }

    /// To standard output, chunk by chunk.
    async fn pipe(&self, reader: impl Read + Send + 'static) -> Result<Done, Failure> {
        let out = io::stdout().as_fd().try_clone_to_owned();
        let out = File::from(out.map_err(Failure::about("standard output"))?);
        self.stream(reader, out).await.map(|_| Done::Piped)
    }

    /// To a file, whole or not at all.
    async fn write(
        &self,
        reader: impl Read + Send + 'static,
        target: &Path,
        mode: u32,
    ) -> Result<Done, Failure> {
        let about = || Failure::about(target.display().to_string());
        let target = match destination::resolve(target).map_err(about())? {
            Target::Device(device) => return self.stream(reader, device).await.map(|_| Done::Piped),
            Target::File(path) => path,
        };
        let existing = match self.placement.existing {
            OnExisting::Replace => Existing::Replace,
            OnExisting::Skip if target.exists() => return Ok(Done::ThereAlready),
            OnExisting::Refuse if target.exists() => return Err(in_the_way(&target)),
            OnExisting::Skip | OnExisting::Refuse => Existing::Refuse,
        };
        let dir = partial::dir_of(&target);
        if self.placement.out.is_some() {
            partial::sweep(dir);
        }
        let partial = Partial::of(&target, mode).map_err(about())?;
        let file = partial.file().try_clone().map_err(about())?;
        let written = self.stream(reader, file).await?;
        let bytes = written.metadata().map_err(about())?.len();
        partial.keep(existing).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => in_the_way(&target),
            _ => about()(error),
        })?;
        Ok(Done::Placed { bytes, dir: dir.to_owned() })
    }

    async fn stream(&self, reader: impl Read + Send + 'static, writer: File) -> Result<File, Failure> {
        let (envelopes, context) = (&self.envelopes, &self.context);
        Ok(match self.direction {
            Direction::Seal => envelopes.seal_stream(context, reader, writer).await,
            Direction::Open => envelopes.open_stream(context, reader, writer).await,
        }?)
    }
}

/// What became of one.
enum Done {
    /// Its result has so many bytes, and its name is not on stable storage yet.
    Placed {
        bytes: u64,
        dir: PathBuf,
    },
    Piped,
    ThereAlready,
    /// In a folder, and not for this direction.
    NotMeant,
    Link,
}

impl Direction {
    /// Whether a file in a folder is meant.
    fn wants(self, path: &Path) -> bool {
        let is_sealed = path.extension() == Some(OsStr::new(SEALED));
        is_sealed == (self == Self::Open)
    }

    fn target_of(self, path: &Path) -> Result<PathBuf, Failure> {
        match self {
            Self::Seal => Ok(path.with_added_extension(SEALED)),
            Self::Open if self.wants(path) => Ok(path.with_extension("")),
            Self::Open => Err(Failure::usage(format!("{} does not end in .{SEALED}", path.display()))
                .hint("say with --out where its plaintext goes")),
        }
    }

    fn step(self) -> &'static str {
        match self {
            Self::Seal => "sealing",
            Self::Open => "opening",
        }
    }
}

impl Summary<'_> {
    fn text(&self, direction: Direction) -> String {
        let done = match direction {
            Direction::Seal => "sealed",
            Direction::Open => "opened",
        };
        let mut text =
            format!("{done} {}, {} written", counted(self.files, "file"), counted(self.bytes, "byte"));
        let others = [
            (self.there_already, "there already"),
            (self.links_not_followed, "symbolic links not followed"),
            (self.failed, "failed"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!("; {count} {what}"));
        }
        text
    }
}

fn in_the_way(target: &Path) -> Failure {
    Failure::usage(format!("{} exists already", target.display()))
        .hint("--existing replace writes it anew, --existing skip takes it for done")
}

/// A file that is read while a bar shows how far.
struct Watched {
    file: File,
    bar: Option<Arc<Bar>>,
    step: &'static str,
    done: u64,
    of: u64,
}

impl Read for Watched {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(bytes)?;
        self.done += len as u64;
        if let Some(bar) = &self.bar {
            bar.show(self.step, self.done, self.of.max(self.done));
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        let sealed = Direction::Seal.target_of(Path::new("d/a.tar")).expect("any file");
        assert_eq!(sealed, Path::new("d/a.tar.sealed"));
        assert_eq!(Direction::Open.target_of(&sealed).expect("sealed"), Path::new("d/a.tar"));
        assert!(Direction::Open.target_of(Path::new("d/a.tar")).is_err());
        assert!(Direction::Open.target_of(Path::new("d/.sealed")).is_err(), "that is a name");
    }

    #[test]
    fn a_folder_is_not_sealed_twice_and_only_what_is_sealed_is_opened() {
        for (name, is_sealed) in [("a", false), ("a.sealed", true), (".env", false), ("sealed", false)] {
            assert_eq!(Direction::Open.wants(Path::new(name)), is_sealed, "{name}");
            assert_eq!(Direction::Seal.wants(Path::new(name)), !is_sealed, "{name}");
        }
    }

    #[test]
    fn the_summary_tells_what_there_is_to_tell() {
        let summary = Summary { files: 1, bytes: 2, failed: 3, ..Default::default() };
        assert_eq!(summary.text(Direction::Open), "opened 1 file, 2 bytes written; 3 failed");
    }
}
