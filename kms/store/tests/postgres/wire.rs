//! The network before the database, which does one evil thing to the next COMMIT that comes by.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{GLANCE, PATIENCE};

/// The message of a simple query (PostgreSQL's manual, "Message Formats"): its length counts itself.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// How the answer ends when it is done: the tag of CommandComplete.
const COMMITTED: &[u8] = b"COMMIT\0";

/// What becomes of a COMMIT, and of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// It is done, but its answer is lost and the connection breaks.
    AnswerLost,
    /// It is lost and the connection breaks.
    Lost,
    /// It never arrives, and nobody is told: as if the sender had been paused right before it.
    Paused,
}

/// Forwards connections until it is dropped.
pub(crate) struct Wire {
    pub(crate) addr: SocketAddr,
    fate: Arc<Mutex<Option<Fate>>>,
    _task: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(database: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let fate = Arc::<Mutex<Option<Fate>>>::default();
        let mut task = JoinSet::new();
        let next = Arc::clone(&fate);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((caller, _)) = listener.accept().await {
                let backend = TcpStream::connect(database).await.expect("the database listens");
                connections.spawn(forward(caller, backend, Arc::clone(&next)));
            }
        });
        Self { addr, fate, _task: task }
    }

    /// So it goes with the next COMMIT.
    pub(crate) fn set_fate(&self, fate: Fate) {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner) = Some(fate);
    }

    /// Waits until it has come by.
    pub(crate) async fn until_done(&self) {
        let done = async {
            let mut tick = tokio::time::interval(GLANCE);
            while self.fate.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, done).await.expect("a COMMIT comes by");
    }
}

/// The end of either direction is the end of both.
async fn forward(mut caller: TcpStream, mut backend: TcpStream, next: Arc<Mutex<Option<Fate>>>) {
    let (mut asked, mut answered) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            len = caller.read(&mut asked) => {
                let Ok(len @ 1..) = len else { return };
                let asked = &asked[..len];
                let mut fate = None;
                if contains(asked, COMMIT) {
                    fate = next.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
                match fate {
                    Some(Fate::Lost) => return,
                    Some(Fate::Paused) => std::future::pending().await,
                    Some(Fate::AnswerLost) | None => {}
                }
                if backend.write_all(asked).await.is_err() {
                    return;
                }
                if fate.is_some() {
                    return until_committed(backend).await;
                }
            }
            len = backend.read(&mut answered) => {
                let Ok(len @ 1..) = len else { return };
                if caller.write_all(&answered[..len]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn until_committed(mut backend: TcpStream) {
    let mut heard = Vec::new();
    while !contains(&heard, COMMITTED) {
        let read = backend.read_buf(&mut heard).await.expect("the database answers");
        assert!(read > 0, "the database did not commit");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
