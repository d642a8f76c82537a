//! `kms jwks`: the public keys, fetched as verifiers fetch them, over HTTP (RFC 7517 §5), or signed for a cache.

mod bundle;

use std::{ffi::OsString, path::Path, time::Duration};

use clap::{Args, Subcommand};
use reqwest::{StatusCode, redirect};
use serde_json::Value;

use crate::{
    connection::given,
    failure::{Code, Failure},
    input,
    name::KeyName,
    output::Format,
};

/// Largest JWKS that is read: 4 MiB.
const JWKS_BYTES_MAX: usize = 4 << 20;
/// Largest file of certificate authorities: 1 MiB.
const CA_BYTES_MAX: usize = 1 << 20;
/// How long fetching may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Fetch the public keys as verifiers do: over HTTP, without a credential
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Jwks {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    fetch: Fetch,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bundle(bundle::Bundle),
}

#[derive(Debug, Args)]
struct Fetch {
    /// Name of a key; without it all keys. A key of the name of a subcommand is written keys/NAME
    name: Option<KeyName>,
    /// Address of the HTTP listener, http://host:port or https://host:port
    #[arg(long, env = "KMS_HTTP_ADDR", value_name = "URL")]
    http_addr: Option<String>,
    /// PEM file of the certificate authorities to trust beside the system's
    #[arg(long, env = "KMS_CACERT", value_name = "FILE")]
    cacert: Option<OsString>,
}

impl Jwks {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        match self.verb {
            Some(Verb::Bundle(verb)) => verb.run(format).await,
            None => self.fetch.run(format).await,
        }
    }
}

impl Fetch {
    async fn run(self, format: Format) -> Result<(), Failure> {
        let base = self.http_addr.as_deref().filter(|addr| !addr.is_empty()).ok_or_else(|| {
            Failure::usage("the address of the HTTP listener is not given").hint(
                "set KMS_HTTP_ADDR or --http-addr; after `kms dev`, run the first command that it printed",
            )
        })?;
        let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let path = match &self.name {
            Some(name) => format!("/{name}/jwks.json"),
            None => "/.well-known/jwks.json".to_owned(),
        };
        let text =
            fetch(&format!("{}{path}", base.trim_end_matches('/')), given(self.cacert.as_ref())).await?;
        let keys: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::other(format!("the server's answer is no JSON: {error}")))?;
        format.print_text_or(&text, &keys)
    }
}

/// Fetches the text at `url`. No redirects: the service makes none, so one leads astray.
async fn fetch(url: &str, cacert: Option<&Path>) -> Result<String, Failure> {
    let failed = |error: reqwest::Error| {
        Failure::new(Code::Unavailable, format!("cannot fetch {url}: {}", causes(&error)))
            .hint("check that the server runs, and KMS_HTTP_ADDR (or --http-addr)")
    };
    let mut client = reqwest::Client::builder().redirect(redirect::Policy::none()).timeout(FETCH_TIMEOUT);
    if let Some(path) = cacert {
        let pem = input::read_file(path, CA_BYTES_MAX)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| Failure::usage(format!("{}: {}", path.display(), causes(&error))))?;
        client = client.tls_certs_merge(certificates);
    }
    let client = client.build().map_err(failed)?;
    let mut response = client.get(url).send().await.map_err(failed)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Failure::new(Code::NotFound, format!("{url} does not exist"))
                .hint("`kms keys list` shows the keys that there are"));
        }
        status => return Err(Failure::new(Code::Unavailable, format!("{url} answered {status}"))),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > JWKS_BYTES_MAX {
            return Err(Failure::other(format!("the answer of {url} is larger than {JWKS_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(body).map_err(|_| Failure::other(format!("the answer of {url} is not UTF-8")))
}

/// The innermost cause says what is wrong; reqwest's own text repeats the URL.
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
