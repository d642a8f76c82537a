//! From SQLite to PostgreSQL: everything arrives, once, and the file is not served again.

use anyhow::ensure;
use kms_client::v1;
use kms_tests::{Fleet, Plan, Server, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_moves_to_postgresql_with_all_that_it_has() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for id in ["one", "two", "three"] {
        server.kms(["keys", "create", id, "--algorithm", "ES256"]).await?.text()?;
    }
    server.kms(["keys", "rotate", "two"]).await?.text()?;
    server.kms(["keys", "disable", "keys/three/versions/1"]).await?.text()?;
    let create = v1::CreateKeyRequest {
        key_id: "remembered".into(),
        key: Some(v1::Key { algorithm: "ES256".into(), ..Default::default() }),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
        ..Default::default()
    };
    server.client().await?.create_key(create.clone()).await?;
    let before = server.get_json("/.well-known/jwks.json").await?;
    let sqlite = server.plan.store.display().to_string();

    let Server { mut running, plan, .. } = server;
    let mut fleet = Fleet::without_administrator(plan, 2).await?;
    let migrate = ["migrate", "sqlite-to-postgres", "--from", sqlite.as_str()];
    let output = fleet.replicas[0].run(&fleet.plan, &migrate).await?;
    refused(&output, &["kms.lock", "stop it first"])?;
    running.terminate().await?;
    fleet.replicas[0].run(&fleet.plan, &migrate).await?.text()?;

    fleet.start_replica(0).await?;
    fleet.start_replica(1).await?;
    ensure!(fleet.get_json("/.well-known/jwks.json").await? == before, "the key set has changed");
    // The credential, a retry of an earlier request, and the state of a version came along.
    for replica in &fleet.replicas {
        let client = replica.environment()?.client().await?;
        client.create_key(create.clone()).await?;
        for key in ["one", "two", "remembered"] {
            replica
                .environment()?
                .kms(["jwt", "sign", key, "--claims", "{}", "--ttl", "1m"])
                .await?
                .text()?;
        }
        let disabled =
            replica.environment()?.kms(["jwt", "sign", "three", "--claims", "{}", "--ttl", "1m"]).await?;
        refused(&disabled, &["three"])?;
    }
    // There is one service now, not two.
    ensure!(!std::path::Path::new(&sqlite).exists(), "the file could be served again");
    Ok(())
}
