//! gRPC calls made by curl: HTTP/2 and nothing else. tonic's client has a timer of its own for each deadline and
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
    /// From the moment when the request could be sent.
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
    let url = format!("{}/{method}", service.addr);
    let mut child = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--http2", "--parallel", "--parallel-max", &count.to_string()])
        .args(["--max-time", &PATIENCE.as_secs().to_string(), "--data-binary", "@-"])
        .args([
            "--write-out",
            WRITE_OUT,
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ])
        .args(["--header", &format!("grpc-timeout: {timeout}")])
        .args(["--header", &format!("authorization: Bearer {}", service.access_token()?)])
        .arg("--cacert")
        .arg(&service.ca_file)
        .args((0..count).flat_map(|_| ["--output", "/dev/null", &url]))
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
    let answers: Vec<_> = String::from_utf8(output.stdout)?.lines().map(parse).collect::<Result<_, _>>()?;
    ensure!(answers.len() == count, "{} answers to {count} calls", answers.len());
    Ok(answers)
}

/// A refusal has its status in the head and no body; a success has its status after the body.
const WRITE_OUT: &str = "%{time_pretransfer} %{time_total} %{http_code} %{size_download} %header{grpc-status} %header{grpc-message}\n";

fn parse(line: &str) -> anyhow::Result<Answer> {
    let fields: Vec<_> = line.splitn(6, ' ').collect();
    let [before, total, "200", body_len, status, message] = fields[..] else {
        anyhow::bail!("not the answer of a gRPC server: {line}");
    };
    let status = if body_len == "0" { status.parse().with_context(|| line.to_owned())? } else { 0 };
    let elapsed = Duration::from_secs_f64((total.parse::<f64>()? - before.parse::<f64>()?).max(0.0));
    Ok(Answer { status, message: message.to_owned(), elapsed })
}
