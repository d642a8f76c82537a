//! What a listener listens on: TCP, or a unix socket in the file system, on which the kernel itself says who calls.
//!
//! Whoever may enter the directory of a unix socket may connect: its own mode lets everybody (0666), because not
//! all systems look at it. What a user may do is policy's to say.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Everybody on this host whom the directory lets through.
const MODE: u32 = 0o666;

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// Of the network.
    Tcp(TcpListener),
    /// Of this host.
    Unix(UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Stream {
    /// From a host of the network.
    Tcp(TcpStream, IpAddr),
    /// From a user of this host.
    Unix(UnixStream, u32),
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A host.
    Host(IpAddr),
    /// A user of this one.
    User(u32),
}

impl Stream {
    /// Where it comes from.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Self::Tcp(_, addr) => Origin::Host(*addr),
            Self::Unix(_, uid) => Origin::User(*uid),
        }
    }
}

impl Socket {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => {
                let (stream, addr) = socket.accept().await?;
                Ok(Stream::Tcp(stream, addr.ip()))
            }
            Self::Unix(socket) => of_user(socket.accept().await?.0),
        }
    }

    /// Asks the kernel itself for connections, which may know more than the runtime has heard; it does not block.
    pub(crate) fn into_waiting(self) -> io::Result<Waiting> {
        Ok(match self {
            Self::Tcp(socket) => Waiting::Tcp(socket.into_std()?),
            Self::Unix(socket) => Waiting::Unix(socket.into_std()?),
        })
    }
}

/// The connections that the kernel has accepted already.
pub(crate) enum Waiting {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Waiting {
    /// One of them; an error when there is none.
    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => {
                let (stream, addr) = socket.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(TcpStream::from_std(stream)?, addr.ip()))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(true)?;
                of_user(UnixStream::from_std(stream)?)
            }
        }
    }
}

/// The user who connected (SO_PEERCRED, unix(7)), whatever the process has become since.
fn of_user(stream: UnixStream) -> io::Result<Stream> {
    // A peer without credentials is that client's matter: the next one is not affected.
    let credentials =
        stream.peer_cred().map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
    Ok(Stream::Unix(stream, credentials.uid()))
}

/// The file of a unix socket that we have bound; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: somebody else's file at the same place is left alone.
    id: (u64, u64),
}

impl SocketFile {
    /// Binds `path`. A socket that nobody listens on is replaced; one that lives, or any other file, is not.
    pub(crate) async fn bind(path: &Path) -> anyhow::Result<(Socket, Self)> {
        remove_stale(path).await?;
        let shown = path.display();
        let socket = UnixListener::bind(path).with_context(|| {
            format!("cannot listen on {shown}; its directory must exist and be this user's, and a path has 107 bytes")
        })?;
        let id = id(path).with_context(|| shown.to_string())?;
        let file = Self { path: path.to_owned(), id };
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).with_context(|| shown.to_string())?;
        Ok((Socket::Unix(socket), file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
    };
    if !kind.is_socket() {
        bail!("{shown} is there and no socket; name another path, or remove it if nobody needs it");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove {shown}, on which nobody listens"))
        }
        _ => bail!("{shown} is in use; is another server running?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_lives_and_a_file_that_is_none_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kms.sock");
        fs::write(&path, "precious").expect("written");
        assert!(SocketFile::bind(&path).await.expect_err("a file").to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
        fs::remove_file(&path).expect("removed");
        let first = SocketFile::bind(&path).await.expect("bound");
        assert!(SocketFile::bind(&path).await.expect_err("it lives").to_string().contains("in use"));
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_of_the_dead_is_replaced_and_everybody_may_connect() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kms.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "it was left behind");
        let (socket, file) = SocketFile::bind(&path).await.expect("replaced");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let _client = UnixStream::connect(&path).await.expect("connected");
        let origin = socket.accept().await.expect("accepted").origin();
        assert_eq!(origin, Origin::User(rustix::process::getuid().as_raw()));
        // Another server's file at the same place is not ours to remove.
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "").expect("written");
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_no_directory_is_refused_with_its_reason() {
        let error = SocketFile::bind(Path::new("/nonexistent/kms.sock")).await.expect_err("no directory");
        assert!(error.to_string().contains("directory"), "{error}");
    }
}
