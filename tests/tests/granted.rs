//! From a proof of who somebody is to what they may do: a certificate and a JWT that roles were given to, and a token
//! that works with its certificate only.

use std::fs;

use anyhow::{Context as _, ensure};
use kms_client::{Client, ClientCertificate, Options, v1};
use kms_tests::{Authority, Environment, PATIENCE, Plan, Says, Server};
use tonic::Code;

const ORDERS: &str = "spiffe://example.org/orders";
const POD: &str = "system:serviceaccount:shop:orders";

/// A server that believes an authority, and tokens of an issuer whose keys lie in `keys.json`. It has the key `login`.
async fn server(authority: &Authority) -> anyhow::Result<Server> {
    let mut plan = Plan::new()?;
    let (ca, keys) = (plan.dir().join("ca.pem"), plan.dir().join("keys.json"));
    fs::write(&ca, authority.pem()?)?;
    let sections = format!(
        "[[authn.client_ca]]\nname = 'mesh'\nca_file = '{}'\ntrust_domain = 'example.org'\n\
         [[authn.jwt_issuer]]\nname = 'cluster'\nissuer = 'https://cluster.example'\naudiences = ['kms']\n\
         jwks_file = '{}'",
        ca.display(),
        keys.display(),
    );
    plan.more.push(("authn", sections));
    plan.bootstrap().await?;
    let server = plan.start().await?;
    server.kms(["keys", "create", "login", "--algorithm", "ES256"]).await?.text()?;
    Ok(server)
}

/// What reading the key comes to.
async fn read(
    service: &Environment,
    credential: Option<&str>,
    certificate: Option<&ClientCertificate>,
) -> anyhow::Result<Code> {
    let mut options = match credential {
        Some(credential) => Options::new(service.addr.clone(), credential.to_owned().into()),
        None => Options::without_token(&service.addr),
    };
    options.ca_pem = Some(fs::read(&service.ca_file)?);
    options.client_certificate = certificate.cloned();
    (options.connect_timeout, options.timeout) = (PATIENCE, PATIENCE);
    let client = Client::connect(options).await?;
    let request = v1::GetKeyRequest { name: "keys/login".into() };
    Ok(client.keys().get_key(request).await.map_or_else(|status| status.code(), |_| Code::Ok))
}

async fn grant(server: &Server, to: &str) -> anyhow::Result<()> {
    server.kms(["access", "grant", "user", "--to", to, "--on", "key:login"]).await?.text()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_has_what_was_granted_to_its_name() -> anyhow::Result<()> {
    let authority = Authority::new("mesh")?;
    let server = server(&authority).await?;
    let orders = authority.issue(&Says::uris(&[ORDERS]), server.plan.dir(), "orders")?;
    let other = authority.issue(&Says::uris(&["spiffe://example.org/other"]), server.plan.dir(), "other")?;
    ensure!(read(&server, None, Some(&orders)).await? == Code::PermissionDenied, "before");
    grant(&server, ORDERS).await?;
    ensure!(read(&server, None, Some(&orders)).await? == Code::Ok, "after");
    ensure!(read(&server, None, Some(&other)).await? == Code::PermissionDenied, "another name");
    // A credential that is sent decides, also a bad one.
    ensure!(read(&server, Some("kms_bad"), Some(&orders)).await? == Code::Unauthenticated, "a bad token");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_bound_works_with_its_certificate_only() -> anyhow::Result<()> {
    let authority = Authority::new("mesh")?;
    let server = server(&authority).await?;
    let orders = authority.issue(&Says::uris(&[ORDERS]), server.plan.dir(), "orders")?;
    let other = authority.issue(&Says::uris(&["spiffe://example.org/other"]), server.plan.dir(), "other")?;
    let create =
        ["access-token", "create", "orders", "--role", "user", "--key", "login", "--bound-to", ORDERS];
    let made = server.kms(create.into_iter().chain(["-o", "json"])).await?.json()?;
    let secret = made["secret"].as_str().context("a credential")?;
    ensure!(read(&server, Some(secret), Some(&orders)).await? == Code::Ok, "with its own");
    ensure!(read(&server, Some(secret), Some(&other)).await? == Code::Unauthenticated, "with another's");
    ensure!(read(&server, Some(secret), None).await? == Code::Unauthenticated, "alone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_has_what_was_granted_to_its_subject() -> anyhow::Result<()> {
    let server = server(&Authority::new("mesh")?).await?;
    // The issuer is a key of this very service: its key set is what an identity provider would publish.
    let set = server.get("/.well-known/jwks.json").await?.text().await?;
    fs::write(server.plan.dir().join("keys.json"), set)?;
    let client = server.client().await?;
    let token = async |issuer: &str, audience: &str| -> anyhow::Result<String> {
        let claims_json =
            serde_json::json!({"iss": issuer, "aud": audience, "sub": POD}).to_string().into_bytes();
        let ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        let request =
            v1::SignJwtRequest { name: "keys/login".into(), claims_json, ttl, ..Default::default() };
        Ok(client.sign_jwt(request).await?.token)
    };
    let good = token("https://cluster.example", "kms").await?;
    ensure!(read(&server, Some(&good), None).await? == Code::PermissionDenied, "known, and without rights");
    grant(&server, &format!("jwt:cluster/{POD}")).await?;
    ensure!(read(&server, Some(&good), None).await? == Code::Ok, "granted");
    for (issuer, audience) in [("https://cluster.example", "other"), ("https://other.example", "kms")] {
        let bad = token(issuer, audience).await?;
        ensure!(read(&server, Some(&bad), None).await? == Code::Unauthenticated, "{issuer} {audience}");
    }
    let (signed, _) = good.rsplit_once('.').context("three parts")?;
    ensure!(read(&server, Some(&format!("{signed}.")), None).await? == Code::Unauthenticated, "unsigned");
    Ok(())
}
