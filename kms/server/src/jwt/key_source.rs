//! Where an issuer's key set comes from, with a limit on whatever comes.

use std::{fs, io::Read as _, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Client, StatusCode, Url, header::CONTENT_TYPE, redirect};

use super::key_set::KeySet;
use crate::config::{JwtIssuer, KeySource};

/// Largest key set in bytes.
pub(super) const KEY_SET_LEN_MAX: usize = 1024 * 1024;
/// Largest file of certificates in bytes.
const CA_LEN_MAX: usize = 1024 * 1024;
/// What a key set may say it is (RFC 7517 §8.5.2).
const CONTENT_TYPES: [&str; 2] = ["application/jwk-set+json", "application/json"];

/// What an operator should know about the files of `issuer`; nobody is asked.
pub fn check(issuer: &JwtIssuer) -> anyhow::Result<()> {
    match &issuer.keys {
        KeySource::File(path) => {
            let text = read_file(path, KEY_SET_LEN_MAX)?;
            KeySet::parse(&text).with_context(|| format!("{} cannot be used", path.display()))?;
        }
        KeySource::Url { ca_file: Some(path), .. } => drop(certificates(path)?),
        KeySource::Url { ca_file: None, .. } => {}
    }
    Ok(())
}

/// Reads the key set; an address within `fetch_max`.
pub(super) async fn read(source: &KeySource, fetch_max: Duration) -> anyhow::Result<KeySet> {
    let text = match source.clone() {
        KeySource::File(path) => {
            tokio::task::spawn_blocking(move || read_file(&path, KEY_SET_LEN_MAX)).await??
        }
        KeySource::Url { url, ca_file } => {
            let fetched = tokio::time::timeout(fetch_max, fetch(url.clone(), ca_file));
            let within = || format!("{url} did not answer within {} s", fetch_max.as_secs_f32());
            fetched.await.with_context(within)?.with_context(|| format!("{url} cannot be fetched"))?
        }
    };
    Ok(KeySet::parse(&text)?)
}

/// A client for each fetch: they are rare, and it sees certificates that were replaced. No redirect: where the keys are
/// is what the configuration says. No proxy of the environment: it is no part of the configuration.
async fn fetch(url: Url, ca_file: Option<std::path::PathBuf>) -> anyhow::Result<Vec<u8>> {
    let client = tokio::task::spawn_blocking(move || {
        let client = Client::builder().redirect(redirect::Policy::none()).no_proxy();
        let client = match ca_file {
            Some(path) => client.tls_certs_only(certificates(&path)?),
            None => client,
        };
        Ok::<_, anyhow::Error>(client.build()?)
    });
    let mut response = client.await??.get(url).send().await.map_err(innermost)?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => bail!("it answers {status}; name the address that it leads to"),
        status => bail!("it answers {status}"),
    }
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    let is_known = CONTENT_TYPES.iter().any(|known| known.eq_ignore_ascii_case(essence));
    ensure!(
        is_known,
        "it does not answer with a key set; its content type must be {}",
        CONTENT_TYPES.join(" or ")
    );
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(innermost)? {
        ensure!(text.len() + chunk.len() <= KEY_SET_LEN_MAX, "it is larger than {KEY_SET_LEN_MAX} bytes");
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let pem = read_file(path, CA_LEN_MAX)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(innermost);
    let certificates = certificates.with_context(|| format!("{} cannot be used", path.display()))?;
    ensure!(!certificates.is_empty(), "{} holds no certificate in PEM", path.display());
    Ok(certificates)
}

fn read_file(path: &Path, len_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let limit = u64::try_from(len_max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(text.len() <= len_max, "{} is larger than {len_max} bytes", path.display());
    Ok(text)
}

/// The innermost cause says what is wrong; the text around it repeats the address.
fn innermost(error: reqwest::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", anyhow::Error::new(error).root_cause())
}
