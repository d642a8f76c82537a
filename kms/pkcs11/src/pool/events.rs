//! What the director hears, and the tasks that tell it: one reads the control socket, one for each worker runs that
//! worker's connection.

use std::{io, sync::Arc};

use tokio::{
    io::AsyncReadExt,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
};

use super::{Shared, link::Link, login::After, rendezvous::Arrival, watch};
use crate::wire::{FromSupervisor, Inbox, Ready, Refusal};

/// What the director hears.
pub(super) enum Event {
    /// From the supervisor.
    Control(FromSupervisor),
    /// The supervisor hung up.
    ControlClosed,
    /// Somebody said hello.
    Arrived(Arrival),
    /// A worker is about to call C_Login, and waits for our word.
    LoggingIn { number: u16, pid: u32, token_serial: String },
    /// The latch has spoken about that.
    Latch { number: u16, pid: u32, token_serial: String, verdict: Result<(), Refusal> },
    /// A worker has logged in.
    LoggedIn { number: u16, pid: u32 },
    /// A worker is READY.
    Ready { number: u16, pid: u32, ready: Ready },
    /// The latch knows what came of a try.
    Settled { number: u16, pid: u32, after: After, refused: Option<String> },
    /// A worker's start was refused.
    Refused { number: u16, pid: u32, refusal: Refusal },
    /// A worker's socket ended.
    LinkClosed { number: u16, pid: u32 },
    /// A worker does not answer.
    Hung { number: u16, pid: u32 },
    /// A worker has said that its HSM link is lost. It ends by itself, unless the library keeps it.
    Lost { number: u16, pid: u32 },
    /// A worker has become silent, or speaks again.
    Stalled,
    /// A retired worker has finished what it had.
    Drained { number: u16, pid: u32 },
}

/// Reads what the supervisor says.
pub(super) async fn listen(mut reader: OwnedReadHalf, events: mpsc::Sender<Event>) {
    let mut inbox = Inbox::default();
    let heard: io::Result<()> = async {
        loop {
            while let Some(body) = inbox.take().map_err(io::Error::other)? {
                let message = FromSupervisor::decode(body).map_err(io::Error::other)?;
                events.send(Event::Control(message)).await.map_err(io::Error::other)?;
            }
            match reader.read(inbox.room()).await? {
                0 => return Ok(()),
                len => inbox.filled(len),
            }
        }
    }
    .await;
    if let Err(error) = heard {
        tracing::error!(%error, "the control socket failed");
    }
    let _ = events.send(Event::ControlClosed).await;
}

/// Runs one worker's connection until it ends.
pub(super) async fn attend(
    link: Arc<Link>,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    inbox: Inbox,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) {
    let (number, pid) = (link.number, link.pid);
    // Reader, writer and watch are tasks of their own, so that each is woken alone.
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let link = Arc::clone(&link);
        async move { link.write(writer).await.err() }
    });
    tasks.spawn({
        let watched = watch::watch(Arc::clone(&link), Arc::clone(&shared), events.clone());
        async move {
            watched.await;
            std::future::pending().await
        }
    });
    let ended = tokio::select! {
        read = link.read(reader, inbox, &events, &shared) => read.err(),
        Some(Ok(error)) = tasks.join_next() => error,
    };
    link.close("the HSM worker died");
    if let Some(error) = ended {
        tracing::warn!(number, pid, %error, "the connection to an HSM worker failed");
    }
    let _ = events.send(Event::LinkClosed { number, pid }).await;
}
