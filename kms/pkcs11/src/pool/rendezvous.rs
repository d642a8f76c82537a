//! The door for workers: a socket in a private directory, peer credentials, a one-time secret.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};

use super::{SOCKET_NAME, events::Event};
use crate::wire::{self, FromWorker, Hello, Inbox};

/// How long a peer may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepting fails when descriptors run out; this is how long it then rests.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Somebody of our user who said hello. Whether it is a worker of ours is for the director to say.
pub(super) struct Arrival {
    pub(super) stream: UnixStream,
    pub(super) inbox: Inbox,
    pub(super) pid: u32,
    pub(super) hello: Hello,
}

/// Binds the socket in `dir`, which must be ours alone.
pub(super) fn bind(dir: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    if !ours {
        let text = format!("{} must be a directory of this user with mode 0700", dir.display());
        return Err(io::Error::other(text));
    }
    let path = dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Lets workers in until the director is gone.
pub(super) async fn accept(listener: UnixListener, events: mpsc::Sender<Event>) {
    while !events.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let events = events.clone();
                tokio::spawn(async move {
                    match timeout(HELLO_TIMEOUT, receive(stream)).await {
                        Ok(Ok(arrival)) => drop(events.send(Event::Arrived(arrival)).await),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "a stranger at the HSM socket was turned away")
                        }
                        Err(_) => tracing::warn!("a peer at the HSM socket said nothing and was turned away"),
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "accepting HSM workers failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn receive(mut stream: UnixStream) -> io::Result<Arrival> {
    let peer = stream.peer_cred()?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("user {} is not ours", peer.uid())));
    }
    let pid = peer
        .pid()
        .and_then(|pid| u32::try_from(pid).ok())
        .ok_or_else(|| io::Error::other("no process id"))?;
    let mut inbox = Inbox::default();
    loop {
        if let Some(body) = inbox.take().map_err(io::Error::other)? {
            let FromWorker::Hello(hello) = FromWorker::decode(body).map_err(io::Error::other)? else {
                return Err(io::Error::other("it did not say hello"));
            };
            if hello.build != wire::BUILD_ID {
                return Err(io::Error::other("it is of another build"));
            }
            return Ok(Arrival { stream, inbox, pid, hello });
        }
        match stream.read(inbox.room()).await? {
            0 => return Err(io::Error::other("it hung up")),
            len => inbox.filled(len),
        }
    }
}
