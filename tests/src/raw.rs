//! A gRPC call made by curl: HTTP/2 and nothing else. tonic's client has a timer of its own for each deadline and
//! answers when it rings; here one sees what the server itself says, and when.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use prost::Message;
use tokio::io::AsyncWriteExt as _;

use crate::{Environment, PATIENCE};

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `grpc-status`: 0 is OK.
    pub status: i32,
    /// `grpc-message`, percent-encoded.
    pub message: String,
    /// From the moment when the connection stood.
    pub elapsed: Duration,
}

/// Calls `method` (`kms.v1.CryptoService/Sign`) with `grpc-timeout` as written, e.g. `500m`.
pub async fn raw_call(
    service: &Environment,
    method: &str,
    request: &impl Message,
    timeout: &str,
) -> anyhow::Result<Answer> {
    let mut child = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--http2", "--output", "/dev/null", "--dump-header", "-"])
        .args(["--max-time", &PATIENCE.as_secs().to_string()])
        .args(["--write-out", "elapsed: %{time_pretransfer} %{time_total}\n"])
        .args(["--header", "content-type: application/grpc", "--header", "te: trailers"])
        .args(["--header", &format!("grpc-timeout: {timeout}")])
        .args(["--header", &format!("authorization: Bearer {}", service.access_token()?)])
        .arg("--cacert")
        .arg(&service.ca_file)
        .args(["--data-binary", "@-", &format!("{}/{method}", service.addr)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("curl")?;
    let body = request.encode_to_vec();
    // gRPC over HTTP/2, "Length-Prefixed-Message": not compressed, length, message.
    let mut frame = vec![0];
    frame.extend(u32::try_from(body.len())?.to_be_bytes());
    frame.extend(body);
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(&frame).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    parse(&String::from_utf8(output.stdout)?)
}

fn parse(text: &str) -> anyhow::Result<Answer> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let elapsed = field("elapsed:").context("no times")?;
    let (before, total) = elapsed.split_once(' ').context("no times")?;
    Ok(Answer {
        status: field("grpc-status:").with_context(|| format!("no grpc-status in {text}"))?.parse()?,
        message: field("grpc-message:").unwrap_or_default().to_owned(),
        elapsed: Duration::from_secs_f64((total.parse::<f64>()? - before.parse::<f64>()?).max(0.0)),
    })
}
