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
