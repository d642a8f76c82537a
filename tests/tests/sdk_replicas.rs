//! The SDK with the addresses of three servers, past any balancer: one leaves, one dies, and no call fails.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, ensure};
use kms_client::{
    Client, Options,
    envelope::{EnvelopeContext, Envelopes, Policy},
    v1,
};
use kms_tests::{Fleet, PATIENCE, Plan};

const CALLS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn one_server_leaves_and_one_dies_and_no_call_fails() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(Plan::new()?, 3).await?;
    let client = client_of_all(&fleet).await?;
    let key = v1::Key { algorithm: "A256GCMKW".into(), ..Default::default() };
    let request = v1::CreateKeyRequest { key_id: "orders".into(), key: Some(key), ..Default::default() };
    client.create_key(request).await?;
    // Each seal asks the service.
    let policy = Policy { messages_max: 1, ..Policy::default() };
    let envelopes = Envelopes::new(client, "keys/orders", policy);

    round_trips_during(&envelopes, async { Ok(()) }).await.context("with three")?;
    round_trips_during(&envelopes, fleet.terminate_replica(0)).await.context("one leaves")?;
    round_trips_during(&envelopes, fleet.kill_replica(1)).await.context("one dies")
}

/// Seals and opens while `change` goes on, and then [`CALLS`] times more.
async fn round_trips_during(
    envelopes: &Envelopes,
    change: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let changed = AtomicBool::new(false);
    let change = async {
        change.await?;
        changed.store(true, Relaxed);
        Ok(())
    };
    let round_trips = async {
        while !changed.load(Relaxed) {
            round_trip(envelopes).await?;
        }
        for _ in 0..CALLS {
            round_trip(envelopes).await?;
        }
        Ok(())
    };
    tokio::try_join!(change, round_trips).map(drop)
}

async fn round_trip(envelopes: &Envelopes) -> anyhow::Result<()> {
    let context = EnvelopeContext::default();
    let sealed = envelopes.seal(&context, b"a row").await?;
    ensure!(envelopes.open(&context, &sealed).await?.expose_secret() == b"a row");
    Ok(())
}

async fn client_of_all(fleet: &Fleet) -> anyhow::Result<Client> {
    let (mut addrs, mut ca_pem, mut token) = (Vec::new(), Vec::new(), None);
    for replica in &fleet.replicas {
        let environment = replica.environment()?;
        addrs.push(environment.addr.clone());
        ca_pem.extend(std::fs::read(&environment.ca_file)?);
        token = Some(environment.access_token()?);
    }
    let token = token.context("a fleet has a replica")?;
    let options = Options { ca_pem: Some(ca_pem), ..Options::new(addrs.join(","), token.into()) };
    // On a busy machine everything takes longer than the SDK waits for it.
    Ok(Client::connect(Options { connect_timeout: PATIENCE, timeout: PATIENCE, ..options }).await?)
}
