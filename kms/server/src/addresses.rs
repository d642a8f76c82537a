//! `listening.json` beside the store: where the server is, for tools of this host and for port 0.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Its name.
pub const FILE_NAME: &str = "listening.json";

/// The file while the server listens; removed when it no longer does.
#[derive(Debug)]
pub(crate) struct File(PathBuf);

impl File {
    /// Removes what a server left behind that was killed.
    pub(crate) fn remove_stale(dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE_NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes `{"grpc":"HOST:PORT","http":"HOST:PORT"}` into `dir`, whole or not at all.
    pub(crate) fn write(dir: &Path, grpc: SocketAddr, http: SocketAddr) -> anyhow::Result<Self> {
        let path = dir.join(FILE_NAME);
        let text = serde_json::json!({ "grpc": grpc, "http": http }).to_string();
        replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, file = %self.0.display(), "not removed");
        }
    }
}

/// A reader sees the old file or the new one. The directory is ours alone, by the store's lock.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_where_and_goes_when_we_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let (grpc, http) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let file = File::write(dir.path(), grpc, http).expect("written");
        let text = fs::read_to_string(dir.path().join(FILE_NAME)).expect("a file");
        assert_eq!(text, r#"{"grpc":"127.0.0.1:1","http":"127.0.0.1:2"}"#);
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn a_file_that_a_killed_server_left_is_removed_at_start() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE_NAME), "{}").expect("written");
        for _ in 0..2 {
            File::remove_stale(dir.path()).expect("removed, or not there");
            assert!(!dir.path().join(FILE_NAME).exists());
        }
    }
}
