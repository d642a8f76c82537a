//! Promise 19: a request that is sent again has one effect, wherever its answer was lost: on a server of its own, and at
//! another replica.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::SocketAddr,
    time::Duration,
};

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
        format!("{lost}; 0 second keys, 0 second versions, 0 orphans"),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_and_a_rotation_whose_answers_are_lost_happen_once_with_replicas() -> anyhow::Result<()> {
    let mut promise = Promise::begin(19, "retries")?;
    let fleet = Fleet::start(Plan::new()?, 2).await?;
    let count = Promise::count(10, 500);
    let direct = fleet.replicas[0].environment()?;
    let lost = tell_twice(&mut promise, direct, fleet.grpc_proxy(), count).await?;
    promise.kept(
        format!("{count} creates and {count} rotations through a network that loses answers, 2 replicas"),
        format!("{lost}; 0 second keys, 0 second versions, 0 orphans"),
    );
    Ok(())
}

/// Answers that were lost.
#[derive(Debug, Default)]
struct Lost {
    /// When the request was there and done: a retry meets what stands in the store.
    after: usize,
    /// At some moment before: a retry may meet the first try at work.
    before: usize,
}

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers lost after the commit and {} before", self.after, self.before)
    }
}

/// Asks for `count` keys and a rotation of each, with answers lost in `proxy` at moments of chance; `direct` is a way
/// past it.
async fn tell_twice(
    promise: &mut Promise,
    direct: &Environment,
    proxy: &Proxy,
    count: usize,
) -> anyhow::Result<Lost> {
    let through = Environment { addr: format!("https://{}", proxy.addr()), ..direct.clone() };
    let direct = direct.client().await?;
    let mut lost = Lost::default();
    for number in 0..count {
        Promise::progress("keys", number, count);
        let id = format!("once-{number}");
        let create = v1::CreateKeyRequest {
            key_id: id.clone(),
            key: Some(v1::Key { algorithm: "ES256".into(), ..Default::default() }),
            request_id: request_id(promise),
        };
        let rotate = v1::RotateKeyRequest {
            name: format!("keys/{id}"),
            request_id: request_id(promise),
            ..Default::default()
        };
        let network = Network { through: &through, proxy, direct: &direct };
        let version = format!("keys/{id}/versions/1");
        let created = network.insist(promise, &mut lost, &version, async |client: &Client| {
            client.keys().create_key(in_time(create.clone())).await.is_ok()
        });
        created.await.with_context(|| format!("create {id}"))?;
        let version = format!("keys/{id}/versions/2");
        let rotated = network.insist(promise, &mut lost, &version, async |client: &Client| {
            client.keys().rotate_key(in_time(rotate.clone())).await.is_ok()
        });
        rotated.await.with_context(|| format!("rotate {id}"))?;
    }
    ensure!(lost.after * 4 > count && lost.before * 4 > count, "only {lost}: this shows nothing");
    check(&direct, count).await?;
    Ok(lost)
}

/// One way that loses answers, and one that does not.
struct Network<'a> {
    through: &'a Environment,
    proxy: &'a Proxy,
    direct: &'a Client,
}

impl Network<'_> {
    /// Sends the same request, which makes `version`, until it is answered. Before each time but the last few a loss is
    /// armed by chance.
    async fn insist(
        &self,
        promise: &mut Promise,
        lost: &mut Lost,
        version: &str,
        call: impl AsyncFn(&Client) -> bool,
    ) -> anyhow::Result<()> {
        for tried in 0..20 {
            // The handshake is done before the loss is armed.
            let client =
                until("it connects", PATIENCE, async || Ok(self.through.client().await.ok())).await?;
            match if tried < 3 { promise.seed.below(3) } else { 0 } {
                0 if call(&client).await => return Ok(()),
                0 => lost.before += 1,
                1 => {
                    self.proxy.swallow_next_answer();
                    if call(&client).await {
                        return Ok(());
                    }
                    lost.before += 1;
                }
                _ => {
                    self.proxy.lose_answers();
                    let breaks = async {
                        let done = until("it is done", PATIENCE, async || self.is_born(version).await).await;
                        self.proxy.break_connections();
                        done
                    };
                    let (answered, done) = tokio::join!(call(&client), breaks);
                    done?;
                    ensure!(!answered, "an answer came through");
                    lost.after += 1;
                }
            }
        }
        anyhow::bail!("not answered in 20 tries")
    }

    async fn is_born(&self, name: &str) -> anyhow::Result<Option<()>> {
        let (parent, _) = name.rsplit_once("/versions/").context("no version's name")?;
        let request = v1::ListKeyVersionsRequest { parent: parent.to_owned(), ..Default::default() };
        // There is no key yet.
        let Ok(found) = self.direct.keys().list_key_versions(request).await else { return Ok(None) };
        let born = |version: &v1::KeyVersion| version.state() != v1::key_version::State::PendingCreation;
        let versions = found.into_inner().key_versions;
        Ok(versions.iter().any(|version| version.name == name && born(version)).then_some(()))
    }
}

fn in_time<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// Every key is there once, with two versions, and the token holds nothing else.
async fn check(client: &Client, count: usize) -> anyhow::Result<()> {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = v1::GetInventoryRequest { page_size: 1_000, page_token, ..Default::default() };
        let page = client.hsm().get_inventory(request).await?.into_inner();
        for object in &page.objects {
            ensure!(object.state() == v1::hsm_object::State::Live, "an object that nobody needs: {object:?}");
            let (key, _) = object.key_version.rsplit_once("/versions/").context("no version's name")?;
            *versions.entry(key.to_owned()).or_default() += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
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
