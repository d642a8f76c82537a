//! gRPC calls made of HTTP/2 and nothing else. tonic's client has a timer of its own for each deadline and answers when
//! it rings; here one sees what the server itself says, and when.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use prost::Message;
use reqwest::{Certificate, Client, RequestBuilder, StatusCode, Version};

use crate::{Environment, PATIENCE};

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `grpc-status`: 0 is OK.
    pub status: i32,
    /// `grpc-message`, percent-encoded.
    pub message: String,
    /// From the moment when the request was given to a connection that stands.
    pub elapsed: Duration,
}

/// Calls `method` (`kms.v1.CryptoService/Sign`) `count` times at once on one connection, with `grpc-timeout` as
/// written, e.g. `500m`.
pub async fn raw_calls(
    service: &Environment,
    method: &str,
    request: &impl Message,
    timeout: &str,
    count: usize,
) -> anyhow::Result<Vec<Answer>> {
    let client = Client::builder()
        .use_rustls_tls()
        .add_root_certificate(Certificate::from_pem(&std::fs::read(&service.ca_file)?)?)
        .timeout(PATIENCE)
        .build()?;
    let credential = service.access_token()?;
    let call = |method: &str, message: &[u8]| {
        client
            .post(format!("{}/{method}", service.addr))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .bearer_auth(&credential)
            .body(frame(message))
    };
    // The handshake is nobody's deadline.
    answer(call("grpc.health.v1.Health/Check", &[])).await?;
    let message = request.encode_to_vec();
    try_join_all((0..count).map(|_| answer(call(method, &message).header("grpc-timeout", timeout)))).await
}

/// gRPC over HTTP/2, "Length-Prefixed-Message": not compressed, length, message.
fn frame(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &len, message].concat()
}

/// A refusal has its status in the head and no body; a success has its status after the body.
async fn answer(call: RequestBuilder) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let response = call.send().await?;
    ensure!(
        (response.status(), response.version()) == (StatusCode::OK, Version::HTTP_2),
        "not the answer of a gRPC server: {response:?}"
    );
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let status = header("grpc-status").map(|status| status.parse().context("grpc-status")).transpose()?;
    let message = header("grpc-message").unwrap_or_default().to_owned();
    let body = response.bytes().await?;
    let elapsed = began.elapsed();
    ensure!(status.is_some() == body.is_empty(), "neither a refusal nor a success");
    Ok(Answer { status: status.unwrap_or(0), message, elapsed })
}
