//! A rewrap campaign: files are looked at one after another, those that are not on the version that wraps now are moved
//! in batches, and a file that fails stops no other. It keeps no state: a file's header says where it is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use kms_client::{
    Client, Kind,
    envelope::{self, Envelopes, Header, Kms as _, Policy, Primary},
};
use serde::Serialize;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

use super::{
    SEALED,
    files::{Found, open_regular},
    header_swap::swap,
    inspect::read_header,
    pace::Pace,
    tally::{FailedFile, Failures, counted},
};
use crate::{
    failure::Failure,
    output::one_line,
    partial::{dir_of, sync_dir},
    progress::Bar,
};

/// How often what the service is too busy for is asked again.
const ATTEMPTS_MAX: u32 = 6;
/// How long it is left alone before that, at first; then twice as long, each time.
const PAUSE: Duration = Duration::from_millis(200);

/// Files that are written at the same time: most of it is waiting for stable storage.
const SWAPS_MAX: usize = 8;

/// How every envelope begins.
const MAGIC: &[u8; 4] = b"KMSE";

pub(super) struct Campaign {
    envelopes: Envelopes,
    primary: Primary,
    pace: Pace,
    waiting: Vec<Item>,
    counts: Counts,
    failures: Failures,
    bar: Bar,
}

/// A file that is to be moved.
struct Item {
    path: PathBuf,
    file: File,
    header: Header,
    version: u32,
}

/// A file that is being written anew, on a thread where it may take its time: meanwhile the connection is kept.
struct Swap {
    path: PathBuf,
    /// Under which it was before.
    version: u32,
    written: JoinHandle<Result<Header, Failure>>,
}

impl Swap {
    fn begin(item: Item, header: Header) -> Self {
        let (path, version) = (item.path.clone(), item.version);
        let write = move || swap(&item.path, &item.file, &item.header, &header).map(|()| header);
        Self { path, version, written: spawn_blocking(write) }
    }
}

/// What became of the files.
#[derive(Debug, Default)]
pub(super) struct Counts {
    looked_at: u64,
    moved: u64,
    there_already: u64,
    other_keys: u64,
    no_envelopes: u64,
    links: u64,
    /// Files of which it is not known under which version they are.
    pub(super) unknown: u64,
    pub(super) by_version: BTreeMap<u32, u64>,
}

/// The same, as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    moved: u64,
    there_already: u64,
    failed: u64,
    payload_bytes_reencrypted: u64,
    files_by_version: &'a BTreeMap<u32, u64>,
    of_other_keys: u64,
    no_envelopes: u64,
    links_not_followed: u64,
    failures: &'a [FailedFile],
}

impl Campaign {
    pub(super) async fn new(client: Client, key: String, rate: Option<u32>) -> Result<Self, Failure> {
        let primary = client.primary(&key).await?;
        Ok(Self {
            envelopes: Envelopes::new(client, key, Policy::default()),
            primary,
            pace: Pace::of(rate),
            waiting: Vec::new(),
            counts: Counts::default(),
            failures: Failures::default(),
            bar: Bar::of_counts("files"),
        })
    }

    /// Looks at one, and moves what waits once it fills a batch. An error is the service's, and ends the campaign.
    pub(super) async fn take(&mut self, found: Found, total: u64) -> Result<(), Failure> {
        self.counts.looked_at += 1;
        match found {
            // Refused before: it is no file.
            Found::StandardInput => {}
            Found::Link(path) => {
                self.counts.links += 1;
                let name = one_line(&path.display().to_string());
                self.bar.say(&format!("{name} is a symbolic link, and not followed"));
            }
            Found::Failed(path, failure) => self.unreadable(&path, failure),
            Found::Named(path) => self.look(path, false),
            Found::Walked(path) => self.look(path, true),
        }
        match self.waiting.len() < self.pace.batch_len() {
            true => Ok(()),
            false => self.flush(total).await,
        }
    }

    /// Moves what waits.
    pub(super) async fn flush(&mut self, total: u64) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.waiting);
        let mut dirs = BTreeSet::new();
        let moved = self.move_all(batch, &mut dirs).await;
        // The names of what was moved survive a crash, also when the service has gone away since.
        for dir in dirs {
            if let Err(error) = sync_dir(&dir) {
                self.failures.add(&dir, Failure::about(dir.display())(error));
            }
        }
        self.bar.show("rewrapping", self.counts.looked_at, total.max(self.counts.looked_at));
        moved
    }

    pub(super) fn end(self) -> (Counts, Failures) {
        (self.counts, self.failures)
    }

    fn look(&mut self, path: PathBuf, walked: bool) {
        let read = || -> Result<Option<(File, Header)>, Failure> {
            let file = open_regular(&path)?;
            if walked && is_stranger(&path, &file)? {
                return Ok(None);
            }
            let header = read_header(&file)?;
            Ok(Some((file, header)))
        };
        let (file, header) = match read() {
            Ok(Some(found)) => found,
            Ok(None) => return self.counts.no_envelopes += 1,
            Err(failure) => return self.unreadable(&path, failure),
        };
        match version_of(&header, self.primary.key_uid) {
            None if walked => self.counts.other_keys += 1,
            None => {
                let failure = Failure::usage(format!("{} is another key's", path.display()));
                self.failures.add(&path, failure.hint("kms envelope inspect shows the uid of its key"));
            }
            Some(version) if version == self.primary.version => {
                self.counts.there_already += 1;
                self.count(version);
            }
            Some(version) => self.waiting.push(Item { path, file, header, version }),
        }
    }

    async fn move_all(&mut self, batch: Vec<Item>, dirs: &mut BTreeSet<PathBuf>) -> Result<(), Failure> {
        let mut batch = batch;
        for attempt in 0.. {
            if batch.is_empty() {
                return Ok(());
            }
            self.pace.wait(batch.len()).await;
            let headers = batch.iter().map(|item| item.header.clone()).collect();
            let results = match self.envelopes.rewrap_headers(headers).await {
                Ok(results) => results,
                Err(error) => {
                    // They are where they were.
                    batch.iter().for_each(|item| self.count(item.version));
                    return Err(error.into());
                }
            };
            let (mut again, mut swaps) = (Vec::new(), VecDeque::new());
            for (item, result) in batch.into_iter().zip(results) {
                match result {
                    Err(error) if is_busy(&error) && attempt + 1 < ATTEMPTS_MAX => again.push(item),
                    Err(error) => self.failed(&item.path, item.version, refused(error)),
                    // It is there already: whoever else moves files was faster.
                    Ok(None) => {
                        self.counts.there_already += 1;
                        self.count(item.version);
                    }
                    Ok(Some(header)) => {
                        if swaps.len() == SWAPS_MAX {
                            self.settle(swaps.pop_front(), dirs).await;
                        }
                        swaps.push_back(Swap::begin(item, header));
                    }
                }
            }
            while !swaps.is_empty() {
                self.settle(swaps.pop_front(), dirs).await;
            }
            batch = again;
            if !batch.is_empty() {
                sleep(PAUSE * 2_u32.pow(attempt)).await;
            }
        }
        Ok(())
    }

    /// Waits for a file to be written.
    async fn settle(&mut self, swap: Option<Swap>, dirs: &mut BTreeSet<PathBuf>) {
        let Some(Swap { path, version, written }) = swap else { return };
        let written = written.await;
        match written
            .unwrap_or_else(|error| Err(Failure::other(format!("the file was not written: {error}"))))
        {
            Ok(header) => {
                self.counts.moved += 1;
                self.count(version_of(&header, self.primary.key_uid).unwrap_or(version));
                dirs.insert(dir_of(&path).to_owned());
            }
            Err(failure) => self.failed(&path, version, failure),
        }
    }

    /// It is where it was.
    fn failed(&mut self, path: &Path, version: u32, failure: Failure) {
        self.count(version);
        self.failures.add(path, failure);
    }

    fn count(&mut self, version: u32) {
        *self.counts.by_version.entry(version).or_default() += 1;
    }

    fn unreadable(&mut self, path: &Path, failure: Failure) {
        self.counts.unknown += 1;
        self.failures.add(path, failure);
    }
}

/// Whether a file in a folder is left alone: it does not begin as an envelope, and its name does not say that it is one.
pub(super) fn is_stranger(path: &Path, file: &File) -> Result<bool, Failure> {
    if path.extension().is_some_and(|extension| extension == SEALED) {
        return Ok(false);
    }
    let mut magic = [0; MAGIC.len()];
    let len = file.read_at(&mut magic, 0).map_err(Failure::about(path.display()))?;
    Ok(&magic[..len] != MAGIC)
}

/// Under which version of the key with this uid; `None` if under none.
fn version_of(header: &Header, key_uid: [u8; 16]) -> Option<u32> {
    let ours = header.recipients().iter().find(|recipient| recipient.header().key_uid == key_uid);
    ours.map(|recipient| recipient.header().key_version.get())
}

/// The service says to nobody why it denies something; here there is one reason more than elsewhere.
fn refused(error: envelope::Error) -> Failure {
    match error.as_kms().map(kms_client::Error::kind) {
        Some(Kind::PermissionDenied) => Failure::from(error)
            .hint("a version that was declared compromised is moved with a credential of the role recoverer"),
        _ => error.into(),
    }
}

/// Whether the same can succeed a moment later.
fn is_busy(error: &envelope::Error) -> bool {
    let kind = error.as_kms().map(kms_client::Error::kind);
    matches!(kind, Some(Kind::Unavailable | Kind::ResourceExhausted | Kind::DeadlineExceeded))
}

impl Counts {
    pub(super) fn summary<'a>(&'a self, failures: &'a Failures) -> Summary<'a> {
        Summary {
            moved: self.moved,
            there_already: self.there_already,
            failed: failures.count(),
            payload_bytes_reencrypted: 0,
            files_by_version: &self.by_version,
            of_other_keys: self.other_keys,
            no_envelopes: self.no_envelopes,
            links_not_followed: self.links,
            failures: failures.named(),
        }
    }
}

impl Summary<'_> {
    pub(super) fn text(&self) -> String {
        let moved = counted(self.moved, "file");
        let mut text = format!("{moved} moved, {} there already, {} failed", self.there_already, self.failed);
        let others = [
            (self.of_other_keys, "of other keys"),
            (self.no_envelopes, "no envelopes"),
            (self.links_not_followed, "symbolic links not followed"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!(", {count} {what}"));
        }
        for (version, count) in self.files_by_version {
            text.push_str(&format!("\nversion {version}: {}", counted(*count, "file")));
        }
        text.push_str(&format!("\npayload bytes re-encrypted: {}", self.payload_bytes_reencrypted));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_neither_begins_nor_is_called_like_an_envelope_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let cases = [("a", "KMSE...", false), ("b", "text", true), ("c", "", true), ("d.sealed", "", false)];
        for (name, text, stranger) in cases {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            let file = File::open(&path).expect("opened");
            assert_eq!(is_stranger(&path, &file).expect("read"), stranger, "{name}");
        }
    }

    #[test]
    fn the_summary_says_what_was_not_touched() {
        let counts = Counts { moved: 2, no_envelopes: 1, by_version: [(2, 2)].into(), ..Default::default() };
        let failures = Failures::default();
        let text = "2 files moved, 0 there already, 0 failed, 1 no envelopes\nversion 2: 2 files\n\
                    payload bytes re-encrypted: 0";
        assert_eq!(counts.summary(&failures).text(), text);
    }
}
