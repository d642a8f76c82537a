//! What verifiers, probes and scrapers meet over HTTP: documents that caches may keep, plain answers to wrong
//! questions, and liveness that never asks the HSM.

use anyhow::{Context as _, ensure};
use kms_tests::{Environment, PATIENCE, Service, kill, until};
use reqwest::{
    Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH},
};
use rustix::process::Signal;
use serde_json::Value;

const DOCUMENTS: [&str; 3] =
    ["/.well-known/jwks.json", "/.well-known/openid-configuration", "/keys/sample-jwt/jwks.json"];

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_404_and_nothing_redirects() -> anyhow::Result<()> {
    let service = Service::start().await?;
    for path in [
        "/",
        "/.well-known",
        "/.well-known/jwks.json/",
        "//.well-known/jwks.json",
        "/.well-known/jwks",
        "/keys/absent/jwks.json",
        "/keys/SAMPLE-JWT/jwks.json",
        "/keys/%2e%2e/jwks.json",
        "/keys/sample-jwt",
        "/keys/sample-jwt/",
        "/keys/a%00b/jwks.json",
        "/kms.v1.KeyService/ListKeys",
    ] {
        let status = service.get(path).await?.status();
        ensure!(status == StatusCode::NOT_FOUND, "GET {path}: {status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_would_write_are_405_and_named_are_those_that_read() -> anyhow::Result<()> {
    let service = Service::start().await?;
    for path in DOCUMENTS.iter().chain(&["/livez", "/readyz", "/metrics"]) {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let response = request(&service, method.clone(), path, &[]).await?;
            ensure!(
                response.status() == StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path}: {}",
                response.status()
            );
            let allow = header(&response, &ALLOW)?;
            ensure!(allow.contains("GET") && allow.contains("HEAD"), "{method} {path}: Allow: {allow}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_told_how_long_and_asked_back_with_a_tag() -> anyhow::Result<()> {
    let service = Service::start().await?;
    for path in DOCUMENTS {
        let response = service.get(path).await?;
        ensure!(response.status() == StatusCode::OK, "GET {path}: {}", response.status());
        ensure!(max_age_s(&response)? > 0, "{path} may not be kept at all");
        let tag = header(&response, &ETAG)?;
        ensure!(tag.starts_with('"') && tag.ends_with('"'), "{path}: a weak or bare tag {tag}");
        let content_type = header(&response, &CONTENT_TYPE)?;
        ensure!(content_type.contains("json"), "{path}: {content_type}");
        let length = response.bytes().await?.len();

        let known = request(&service, Method::GET, path, &[(IF_NONE_MATCH, &tag)]).await?;
        ensure!(known.status() == StatusCode::NOT_MODIFIED, "{path} with {tag}: {}", known.status());
        ensure!(
            header(&known, &ETAG)? == tag && known.bytes().await?.is_empty(),
            "{path}: a 304 with a body"
        );
        let other = request(&service, Method::GET, path, &[(IF_NONE_MATCH, "\"other\"")]).await?;
        ensure!(other.status() == StatusCode::OK, "{path} with another tag: {}", other.status());

        let head = request(&service, Method::HEAD, path, &[]).await?;
        ensure!(head.status() == StatusCode::OK && header(&head, &ETAG)? == tag, "HEAD {path}: {head:?}");
        let announced = head.headers().get("content-length").context("no length")?.to_str()?.to_owned();
        ensure!(announced == length.to_string(), "HEAD {path} announces {announced} of {length} bytes");
        ensure!(head.bytes().await?.is_empty(), "HEAD {path} has a body");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tag_changes_when_the_keys_do_and_only_then() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let all = "/.well-known/jwks.json";
    let before = header(&service.get(all).await?, &ETAG)?;
    service.kms(["keys", "update", "sample-jwt", "--owner", "somebody"]).await?.text()?;
    ensure!(header(&service.get(all).await?, &ETAG)? == before, "an owner is not published");
    service.kms(["keys", "create", "another", "--algorithm", "ES256"]).await?.text()?;
    let with_another = service.get(all).await?;
    ensure!(header(&with_another, &ETAG)? != before, "a new key, and the same tag");
    service.kms(["keys", "disable", "another", "--version", "1"]).await?.text()?;
    ensure!(header(&service.get(all).await?, &ETAG)? == before, "the same keys as at first, and another tag");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_names_the_issuer_the_keys_and_the_algorithms() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let discovery = service.get_json("/.well-known/openid-configuration").await?;
    let issuer = discovery["issuer"].as_str().context("no issuer")?;
    let jwks_uri = discovery["jwks_uri"].as_str().context("no jwks_uri")?;
    ensure!(jwks_uri == format!("{issuer}/.well-known/jwks.json"), "{discovery}");
    ensure!(
        discovery["id_token_signing_alg_values_supported"] == serde_json::json!(["ES256"]),
        "{discovery}"
    );
    let found: Value =
        serde_json::from_slice(&Environment::http()?.get(jwks_uri).send().await?.bytes().await?)?;
    ensure!(found == service.get_json("/.well-known/jwks.json").await?, "jwks_uri leads elsewhere: {found}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_hsm_makes_us_unready_and_not_dead_and_the_keys_stay_public() -> anyhow::Result<()> {
    let service = Service::start().await?;
    service.all_workers_ready().await?;
    ensure!(service.get("/readyz").await?.status() == StatusCode::OK, "not ready though all is well");

    let workers = service.tree()?.workers();
    ensure!(!workers.is_empty(), "there are no workers");
    for worker in &workers {
        kill(*worker, Signal::STOP)?;
    }
    until("/readyz says that the HSM is away", PATIENCE, async || {
        ensure!(service.get("/livez").await?.status() == StatusCode::OK, "liveness asks the HSM");
        ensure!(service.get(DOCUMENTS[0]).await?.status() == StatusCode::OK, "the JWKS asks the HSM");
        Ok((service.get("/readyz").await?.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(()))
    })
    .await?;
    // Nobody wakes them: hung workers are replaced.
    until("/readyz is well again", PATIENCE, async || {
        Ok((service.get("/readyz").await?.status() == StatusCode::OK).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_openmetrics_with_a_type_for_each_and_no_caller_in_them() -> anyhow::Result<()> {
    let service = Service::start().await?;
    service.kms(["jwt", "sign", "sample-jwt", "--claims", "{}", "--ttl", "1m"]).await?.text()?;
    let response = service.get("/metrics").await?;
    let content_type = header(&response, &CONTENT_TYPE)?;
    ensure!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    let text = response.text().await?;
    ensure!(text.ends_with("# EOF\n"), "no end: {text}");

    let mut types = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            types.push(rest.split(' ').next().context("no name")?.to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            ensure!(value.parse::<f64>().is_ok(), "no number: {line}");
            let name = series.split('{').next().context("no name")?;
            ensure!(types.iter().any(|family| name.starts_with(family.as_str())), "no type: {line}");
        }
    }
    // Two have the names that operators' rules have already.
    let is_ours = |name: &String| {
        name.starts_with("kms_") || ["key_rotation_success", "key_expiry_timestamp"].contains(&name.as_str())
    };
    ensure!(types.len() > 5 && types.iter().all(is_ours), "{types:?}");
    ensure!(!text.contains("access-token"), "a caller is in a label");
    Ok(())
}

async fn request(
    service: &Environment,
    method: Method,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> anyhow::Result<Response> {
    let mut request = Environment::http()?.request(method, format!("{}{path}", service.http_addr));
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    Ok(request.send().await?)
}

fn header(response: &Response, name: &HeaderName) -> anyhow::Result<String> {
    let value = response.headers().get(name).with_context(|| format!("no {name} in {response:?}"))?;
    Ok(value.to_str()?.to_owned())
}

fn max_age_s(response: &Response) -> anyhow::Result<u64> {
    let text = header(response, &CACHE_CONTROL)?;
    let directive = text.split(',').find_map(|directive| directive.trim().strip_prefix("max-age="));
    Ok(directive.with_context(|| format!("no max-age in {text}"))?.parse()?)
}
