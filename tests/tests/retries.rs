//! Promise 19: a request that is sent again has one effect, wherever its answer was lost: on a server of its own, and at
//! another replica.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Environment, Fleet, PATIENCE, Plan, Promise, Proxy, Server, until};
use tonic::Request;

/// Long enough for a birth; the answer is lost in most cases, and nobody waits for it then.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_create_and_a_rotation_whose_answers_are_lost_happen_once_on_sqlite() -> anyhow::Result<()> {
    let mut promise = Promise::begin(19, "retries")?;
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server: Server = plan.start().await?;
    let proxy = Proxy::to(vec![addr(&server.addr)?]).await?;
    let count = Promise::count(10, 500);
    let lost = tell_twice(&mut promise, &server, &proxy, count).await?;
    promise.kept(
        format!("{count} creates and {count} rotations through a network that loses answers, SQLite"),
        format!("{lost} answers lost, 0 second keys, 0 second versions, 0 orphans"),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_and_a_rotation_whose_answers_are_lost_happen_once_with_replicas() -> anyhow::Result<()> {
    let mut promise = Promise::begin(19, "retries")?;
    let fleet = Fleet::start(Plan::new()?, 2).await?;
    let count = Promise::count(10, 500);
    let lost = tell_twice(&mut promise, &fleet, fleet.grpc_proxy(), count).await?;
    promise.kept(
        format!("{count} creates and {count} rotations through a network that loses answers, 2 replicas"),
        format!("{lost} answers lost, 0 second keys, 0 second versions, 0 orphans"),
    );
    Ok(())
}

/// Asks for `count` keys and a rotation of each, with answers swallowed by `proxy` at moments of chance. Returns how
/// many calls failed and were sent again.
async fn tell_twice(
    promise: &mut Promise,
    there: &Environment,
    proxy: &Proxy,
    count: usize,
) -> anyhow::Result<usize> {
    let through = Environment { addr: format!("https://{}", proxy.addr()), ..there.clone() };
    let mut lost = 0;
    for number in 0..count {
        Promise::progress("keys", number, count);
        let id = format!("once-{number}");
        let create = v1::CreateKeyRequest {
            key_id: id.clone(),
            key: Some(v1::Key { algorithm: "ES256".into(), ..Default::default() }),
            request_id: request_id(promise),
        };
        lost += insist(promise, &through, proxy, async |client: &Client| {
            let mut request = Request::new(create.clone());
            request.set_timeout(DEADLINE);
            client.keys().create_key(request).await.is_ok()
        })
        .await
        .with_context(|| format!("create {id}"))?;
        let rotate = v1::RotateKeyRequest {
            name: format!("keys/{id}"),
            request_id: request_id(promise),
            ..Default::default()
        };
        lost += insist(promise, &through, proxy, async |client: &Client| {
            let mut request = Request::new(rotate.clone());
            request.set_timeout(DEADLINE);
            client.keys().rotate_key(request).await.is_ok()
        })
        .await
        .with_context(|| format!("rotate {id}"))?;
    }
    ensure!(lost * 4 > count, "only {lost} answers were lost: this shows nothing");
    check(&there.client().await?, count).await?;
    Ok(lost)
}

/// Sends the same request until it is answered. Before each time but the last few a loss is armed by chance.
async fn insist(
    promise: &mut Promise,
    through: &Environment,
    proxy: &Proxy,
    call: impl AsyncFn(&Client) -> bool,
) -> anyhow::Result<usize> {
    for tried in 0..20 {
        // The handshake is done before the loss is armed.
        let client = until("it connects", PATIENCE, async || Ok(through.client().await.ok())).await?;
        if tried < 3 && promise.seed.below(2) == 0 {
            proxy.swallow_next_answer();
        }
        if call(&client).await {
            return Ok(tried);
        }
    }
    anyhow::bail!("not answered in 20 tries")
}

/// Every key is there once, with two versions, and the token holds nothing else.
async fn check(client: &Client, count: usize) -> anyhow::Result<()> {
    let inventory = client.hsm().get_inventory(v1::GetInventoryRequest::default()).await?.into_inner();
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for object in &inventory.objects {
        ensure!(object.state() == v1::hsm_object::State::Live, "an object that nobody needs: {object:?}");
        let (key, _) = object.key_version.rsplit_once("/versions/").context("no version's name")?;
        *versions.entry(key.to_owned()).or_default() += 1;
    }
    ensure!(versions.len() == count, "{} keys of {count}", versions.len());
    let odd: Vec<_> = versions.iter().filter(|(_, versions)| **versions != 2).collect();
    ensure!(odd.is_empty(), "{odd:?}");
    Ok(())
}

fn request_id(promise: &mut Promise) -> String {
    let mut digits = || promise.seed.below(1 << 24);
    format!("{:08x}-0000-4000-8000-{:06x}{:06x}", digits(), digits(), digits())
}

fn addr(url: &str) -> anyhow::Result<SocketAddr> {
    Ok(url.rsplit_once('/').context("no URL")?.1.parse()?)
}
