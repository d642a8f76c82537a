//! The calls that are measured, without the SDK's retries: a failure ends the benchmark.

use std::{future::Future, pin::Pin, time::Duration};

use kms_client::{Client, v1};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// One call.
pub(crate) type Call = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Signs a digest of 32 bytes.
pub(crate) fn sign(client: &Client, name: String) -> impl FnMut() -> Call + Send + 'static {
    let client = client.crypto();
    move || {
        let (mut client, request) = (client.clone(), request(name.clone()));
        Box::pin(async move {
            client.sign(request).await?;
            Ok(())
        })
    }
}

/// Signs a small JWT.
pub(crate) fn sign_jwt(client: &Client, name: String) -> impl FnMut() -> Call + Send + 'static {
    let client = client.crypto();
    move || {
        let mut client = client.clone();
        let claims_json = br#"{"sub":"bench","aud":"bench"}"#.to_vec();
        let ttl = Duration::from_secs(60).try_into().ok();
        let request = v1::SignJwtRequest { name: name.clone(), claims_json, ttl, ..Default::default() };
        Box::pin(async move {
            client.sign_jwt(request).await?;
            Ok(())
        })
    }
}

/// Disables the version of that name, and enables it again: two changes.
pub(crate) fn flip(client: &Client, name: String) -> impl FnMut() -> Call + Send + 'static {
    let client = client.keys();
    move || {
        let (mut client, name) = (client.clone(), name.clone());
        Box::pin(async move {
            let disable = v1::DisableKeyVersionRequest { name: name.clone(), ..Default::default() };
            client.disable_key_version(disable).await?;
            client.enable_key_version(v1::EnableKeyVersionRequest { name, ..Default::default() }).await?;
            Ok(())
        })
    }
}

/// Signs `items` digests in one call.
pub(crate) fn batch(client: &Client, name: String, items: usize) -> impl FnMut() -> Call + Send + 'static {
    let client = client.crypto();
    move || {
        let mut client = client.clone();
        let requests = (0..items).map(|_| request(name.clone())).collect();
        Box::pin(async move {
            let response = client.batch_sign(v1::BatchSignRequest { requests }).await?.into_inner();
            let failed = |result: &v1::BatchSignResult| {
                !matches!(result.outcome, Some(v1::batch_sign_result::Outcome::Response(_)))
            };
            anyhow::ensure!(!response.results.iter().any(failed), "an item of a batch failed");
            Ok(())
        })
    }
}

/// Asks the standard health service.
pub(crate) fn health(client: &Client) -> impl FnMut() -> Call + Send + 'static {
    let client = HealthClient::new(client.channel());
    move || {
        let mut client = client.clone();
        Box::pin(async move {
            client.check(HealthCheckRequest::default()).await?;
            Ok(())
        })
    }
}

fn request(name: String) -> v1::SignRequest {
    let input = Some(v1::sign_request::Input::Digest(vec![0x5a; 32]));
    let signature_format = v1::SignatureFormat::Jose.into();
    v1::SignRequest { name, input, signature_format }
}
