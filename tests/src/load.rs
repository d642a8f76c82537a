//! Callers that sign without a pause.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kms_client::{Client, v1};
use tokio::task::JoinSet;
use tonic::Request;

use crate::Refusal;

/// Callers at work, each with one request in flight.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    callers: JoinSet<Vec<Refusal>>,
}

/// What became of their requests.
#[derive(Debug)]
pub struct Report {
    /// Signatures that were given.
    pub signed: u64,
    /// All that were refused.
    pub refused: Vec<Refusal>,
}

impl Load {
    /// Sets `callers` to work with the keys `names` (`keys/{key}`) in turn. Nothing is tried twice: each failure
    /// is one that a caller without the SDK's patience would see.
    pub fn start(client: &Client, names: &[String], callers: usize, deadline: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let signed = Arc::new(AtomicU64::new(0));
        let names: Arc<[String]> = names.into();
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (stop, signed) = (Arc::clone(&stop), Arc::clone(&signed));
            let mut service = client.crypto();
            let names = Arc::clone(&names);
            tasks.spawn(async move {
                let mut refused = Vec::new();
                for name in names.iter().cycle().skip(caller).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let mut request = Request::new(sign_request(name.clone()));
                    request.set_timeout(deadline);
                    match service.sign(request).await {
                        Ok(_) => _ = signed.fetch_add(1, Ordering::Relaxed),
                        Err(status) => refused.push(status.into()),
                    }
                }
                refused
            });
        }
        Self { stop, signed, callers: tasks }
    }

    /// Signatures that were given until now.
    pub fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    /// Lets every caller finish its request.
    pub async fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.callers.join_all().await.into_iter().flatten().collect();
        Report { signed: self.signed.load(Ordering::Relaxed), refused }
    }
}

impl Report {
    /// How often each kind of refusal came, for messages.
    pub fn by_kind(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for refusal in &self.refused {
            *kinds
                .entry(format!("{:?} {}: {}", refusal.code, refusal.reason, refusal.message))
                .or_default() += 1;
        }
        kinds
    }
}

fn sign_request(name: String) -> v1::SignRequest {
    let input = Some(v1::sign_request::Input::Message(b"a message".to_vec()));
    v1::SignRequest { name, input, ..Default::default() }
}
