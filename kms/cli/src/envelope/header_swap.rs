//! Another header in the place of an envelope's own, in a copy that takes the file's place. The original is there until
//! then, whatever happens; the payload is copied by the kernel, or shared where the file system can, and never looked at.

use std::{
    ffi::CString,
    fs::{self, File, FileTimes, Metadata, Permissions},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, fchown},
    path::Path,
};

use kms_client::envelope::Header;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, ioctl_ficlone};

use crate::{
    failure::{Code, Failure},
    partial::{Existing, Partial},
};

/// Longest list of extended attributes, and longest value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_LEN_MAX: usize = 64 * 1024;

/// Replaces the file at `path`, which was opened as `file` and begins with `old`, by the same with `new` in its place. Its
/// directory is not synced.
pub(super) fn swap(path: &Path, file: &File, old: &Header, new: &Header) -> Result<(), Failure> {
    let about = || Failure::about(path.display().to_string());
    let metadata = file.metadata().map_err(about())?;
    if metadata.nlink() > 1 {
        let names = metadata.nlink();
        return Err(Failure::usage(format!("{} has {names} names (hard links)", path.display()))
            .hint("one that is replaced would be parted from the others: remove all but one, and link anew afterwards"));
    }
    let partial = Partial::of(path, 0o600).map_err(about())?;
    write(file, partial.file(), &old.to_bytes(), &new.to_bytes()).map_err(about())?;
    keep_attributes(&metadata, file, partial.file()).map_err(about())?;
    if !is_unchanged(path, &metadata).map_err(about())? {
        return Err(Failure::new(Code::Precondition, format!("{} changed meanwhile", path.display()))
            .hint("run the same command again once nobody writes to it"));
    }
    partial.keep(Existing::Replace).map_err(about())
}

fn write(mut from: &File, mut to: &File, old: &[u8], new: &[u8]) -> io::Result<()> {
    if old.len() == new.len() && ioctl_ficlone(to, from).is_ok() {
        return to.write_all_at(new, 0);
    }
    to.write_all(new)?;
    from.seek(SeekFrom::Start(old.len() as u64))?;
    // Linux: copy_file_range, so the bytes do not come through this process.
    io::copy(&mut from, &mut to).map(drop)
}

/// Owner, extended attributes (access lists, labels), mode and times.
fn keep_attributes(metadata: &Metadata, from: &File, to: &File) -> io::Result<()> {
    let ours = to.metadata()?;
    if (ours.uid(), ours.gid()) != (metadata.uid(), metadata.gid()) {
        fchown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(|error| {
            let (uid, gid) = (metadata.uid(), metadata.gid());
            io::Error::new(
                error.kind(),
                format!("cannot keep its owner ({uid}:{gid}); run this as its owner or root"),
            )
        })?;
    }
    copy_extended_attributes(from, to);
    to.set_permissions(Permissions::from_mode(metadata.permissions().mode()))?;
    to.set_times(FileTimes::new().set_accessed(metadata.accessed()?).set_modified(metadata.modified()?))
}

/// As far as that can be done: file systems have none, or some that nobody may set.
fn copy_extended_attributes(from: &File, to: &File) {
    let mut names = vec![0; XATTR_LEN_MAX];
    let Ok(len) = flistxattr(from, &mut names) else { return };
    let mut value = vec![0; XATTR_LEN_MAX];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { continue };
        if let Ok(len) = fgetxattr(from, name.as_c_str(), &mut value) {
            let _ = fsetxattr(to, name.as_c_str(), &value[..len], XattrFlags::empty());
        }
    }
}

/// Whether the name still stands for the file that was read, as it was.
fn is_unchanged(path: &Path, then: &Metadata) -> io::Result<bool> {
    let now = fs::symlink_metadata(path)?;
    let state = |of: &Metadata| (of.dev(), of.ino(), of.len(), of.mtime(), of.mtime_nsec(), of.nlink());
    Ok(state(&now) == state(then))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A header of this many recipients, all of this version.
    fn header(version: u8, recipients: u8) -> Header {
        let wrapped = [
            b"KMSW\x01\x01\x01\x00",
            &[1; 16][..],
            &[0, 0, 0, version],
            &[2; 16],
            &[3; 32],
            &[0, 60],
            &[4; 60],
        ];
        let wrapped = wrapped.concat();
        let mut bytes = [b"KMSE\x01\x01\x01", &[recipients][..], &[2; 16], &[5; 32], &[6; 32]].concat();
        for _ in 0..recipients {
            bytes.extend([&[0, 138], &wrapped[..]].concat());
        }
        Header::read(&bytes[..]).expect("a header")
    }

    fn sealed(dir: &tempfile::TempDir) -> (std::path::PathBuf, File, Vec<u8>) {
        let path = dir.path().join("a.sealed");
        let payload: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
        fs::write(&path, [header(1, 1).to_bytes(), payload.clone()].concat()).expect("written");
        let file = File::open(&path).expect("opened");
        (path, file, payload)
    }

    #[test]
    fn a_header_of_any_length_takes_the_place_of_another_and_the_payload_stays() {
        for recipients in [1, 3] {
            let dir = tempfile::tempdir().expect("a directory");
            let (path, file, payload) = sealed(&dir);
            let new = header(2, recipients);
            swap(&path, &file, &header(1, 1), &new).expect("swapped");
            assert!(fs::read(&path).expect("read") == [new.to_bytes(), payload].concat(), "{recipients}");
            assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "something is left");
        }
    }

    #[test]
    fn mode_times_and_extended_attributes_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, file, _) = sealed(&dir);
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.set_permissions(Permissions::from_mode(0o640)).expect("set");
        let has_attributes = fsetxattr(&file, "user.owner", b"me", XattrFlags::empty()).is_ok();
        let times = FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
        File::options().write(true).open(&path).expect("opened").set_times(times).expect("set");
        swap(&path, &file, &header(1, 1), &header(2, 1)).expect("swapped");
        let kept = fs::metadata(&path).expect("there");
        assert_eq!((kept.permissions().mode() & 0o7777, kept.modified().expect("a time")), (0o640, long_ago));
        let mut value = [0; 8];
        let len = fgetxattr(File::open(&path).expect("opened"), "user.owner", &mut value);
        assert_eq!(len.ok(), has_attributes.then_some(2));
    }

    #[test]
    fn what_changed_meanwhile_or_has_another_name_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, file, _) = sealed(&dir);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "another").expect("written");
        let failure = swap(&path, &file, &header(1, 1), &header(2, 1)).expect_err("it is another file");
        assert_eq!(
            (failure.code(), fs::read(&path).expect("read")),
            (Code::Precondition, b"another".to_vec())
        );

        let (path, file, _) = sealed(&dir);
        fs::hard_link(&path, dir.path().join("b")).expect("linked");
        let before = fs::read(&path).expect("read");
        let failure = swap(&path, &file, &header(1, 1), &header(2, 1)).expect_err("it has two names");
        assert!(failure.message().contains("2 names"), "{}", failure.message());
        assert!(fs::read(&path).expect("read") == before);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2, "something is left");
    }
}
