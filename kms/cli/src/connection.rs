//! The connection of client verbs: where the service is, whom to trust, which credential; and what its errors
//! mean for the exit code.

use std::{ffi::OsString, path::Path};

use clap::Args;
use jiff::SignedDuration;
use kms_client::{Client, ClientCertificate, Error, Kind, Options, SecretString, envelope};

use crate::{
    duration,
    failure::{Code, Failure},
    input,
};

/// Largest file of certificate authorities: 1 MiB.
const CA_BYTES_MAX: usize = 1 << 20;
/// Largest file with a credential.
const TOKEN_BYTES_MAX: usize = 4_096;
/// The service's one reason for whatever does not open.
const NOT_OPENED: &str = "NOT_OPENED";

/// Where the service is, and how to speak to it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Address of the service, host:port or https://host:port; of several replicas, separated by commas; or unix:///path
    #[arg(long, env = "KMS_ADDR", global = true, value_name = "ADDR")]
    addr: Option<String>,
    /// PEM file of the certificate authorities to trust; without it the system's
    #[arg(long, env = "KMS_CACERT", global = true, value_name = "FILE")]
    cacert: Option<OsString>,
    /// File with the access token's credential
    #[arg(long, env = "KMS_TOKEN_FILE", global = true, value_name = "FILE")]
    token_file: Option<OsString>,
    /// Certificate of the caller, PEM, when the service knows it by that and not by an access token
    #[arg(long, env = "KMS_CLIENT_CERT", global = true, value_name = "FILE")]
    client_cert: Option<OsString>,
    /// Its private key, PEM
    #[arg(long, env = "KMS_CLIENT_KEY", global = true, value_name = "FILE")]
    client_key: Option<OsString>,
    /// How long a call may take; an RSA-4096 pair takes many seconds to generate
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    timeout: SignedDuration,
}

impl Connection {
    /// Connects.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let addr = self.addr.as_deref().filter(|addr| !addr.is_empty());
        let addr = addr.ok_or_else(|| missing("the service's address", "KMS_ADDR", "--addr"))?;
        let mut options = Options::without_token(addr);
        options.access_token = self.access_token()?;
        options.client_certificate = self.client_certificate()?;
        let is_local = addr.split(',').all(|addr| addr.trim().starts_with("unix:"));
        if options.access_token.is_none() && options.client_certificate.is_none() && !is_local {
            return Err(missing("an access token or a client certificate", "KMS_TOKEN_FILE", "--token-file"));
        }
        if let Some(path) = given(self.cacert.as_ref()) {
            options.ca_pem = Some(input::read_file(path, CA_BYTES_MAX)?);
        }
        options.timeout = self.timeout.unsigned_abs();
        options.connect_timeout = options.connect_timeout.min(options.timeout);
        Ok(Client::connect(options).await?)
    }

    fn access_token(&self) -> Result<Option<SecretString>, Failure> {
        let Some(token_file) = given(self.token_file.as_ref()) else { return Ok(None) };
        let token = input::read_line_file(token_file, TOKEN_BYTES_MAX)?;
        if token.is_empty() {
            return Err(Failure::usage(format!("{} is empty", token_file.display())));
        }
        Ok(Some(token.into()))
    }

    fn client_certificate(&self) -> Result<Option<ClientCertificate>, Failure> {
        match (given(self.client_cert.as_ref()), given(self.client_key.as_ref())) {
            (Some(cert_file), Some(key_file)) => {
                Ok(Some(ClientCertificate { cert_file: cert_file.to_owned(), key_file: key_file.to_owned() }))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(missing("the client certificate's key", "KMS_CLIENT_KEY", "--client-key")),
            (None, Some(_)) => {
                Err(missing("the certificate of the client key", "KMS_CLIENT_CERT", "--client-cert"))
            }
        }
    }
}

/// A path that is given. A variable that is set to nothing means the same as one that is not set.
pub(crate) fn given(path: Option<&OsString>) -> Option<&Path> {
    path.filter(|path| !path.is_empty()).map(Path::new)
}

/// Whatever does not open is one failure, before a key is touched and after.
impl From<envelope::Error> for Failure {
    fn from(error: envelope::Error) -> Self {
        match error {
            envelope::Error::Kms(error) => error.into(),
            envelope::Error::NotOpened | envelope::Error::Malformed(_) => {
                Self::new(Code::NotVerified, error.to_string())
            }
            envelope::Error::Context(_) => Self::usage(error.to_string()),
            envelope::Error::Seal(_) | envelope::Error::Io(_) => Self::other(error.to_string()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.reason() {
            Some(NOT_OPENED) => Code::NotVerified,
            _ => code(error.kind()),
        };
        let failure = Self::new(code, error.to_string());
        match (hint(error.kind()), error.retry_delay()) {
            (_, Some(delay)) => failure.hint(format!("try again in {} ms", delay.as_millis())),
            (Some(hint), None) => failure.hint(hint),
            (None, None) => failure,
        }
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::Usage,
        Kind::NotFound => Code::NotFound,
        Kind::Unauthenticated | Kind::PermissionDenied => Code::Denied,
        Kind::AlreadyExists | Kind::Aborted | Kind::FailedPrecondition => Code::Precondition,
        Kind::Unavailable | Kind::DeadlineExceeded | Kind::ResourceExhausted => Code::Unavailable,
        Kind::Unimplemented | Kind::Internal => Code::Other,
    }
}

/// What to do next, where the server's message cannot know it.
fn hint(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Unauthenticated => Some(
            "check that the file of KMS_TOKEN_FILE or --token-file holds a valid credential, or that of \
             KMS_CLIENT_CERT or --client-cert a certificate that the server knows",
        ),
        Kind::Aborted => Some("it changed meanwhile; read it again and repeat"),
        Kind::AlreadyExists => Some("choose another name: names are not used twice"),
        Kind::Unavailable => {
            Some("check that the server runs, and KMS_ADDR and KMS_CACERT (or --addr and --cacert)")
        }
        Kind::DeadlineExceeded => {
            Some("it may or may not have happened; look, or repeat with a longer --timeout")
        }
        Kind::Unimplemented => Some("the server is older than this program"),
        Kind::Internal => Some("look into the server's log"),
        Kind::InvalidArgument
        | Kind::PermissionDenied
        | Kind::NotFound
        | Kind::FailedPrecondition
        | Kind::ResourceExhausted => None,
    }
}

fn missing(what: &str, variable: &str, flag: &str) -> Failure {
    Failure::usage(format!("{what} is not given"))
        .hint(format!("set {variable} or {flag}; after `kms dev`, run the first command that it printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_documented_exit_code() {
        let table = [
            (Kind::InvalidArgument, 2),
            (Kind::NotFound, 3),
            (Kind::Unauthenticated, 4),
            (Kind::PermissionDenied, 4),
            (Kind::AlreadyExists, 5),
            (Kind::Aborted, 5),
            (Kind::FailedPrecondition, 5),
            (Kind::ResourceExhausted, 6),
            (Kind::DeadlineExceeded, 6),
            (Kind::Unavailable, 6),
            (Kind::Unimplemented, 1),
            (Kind::Internal, 1),
        ];
        for (kind, exit_code) in table {
            assert_eq!(code(kind) as u8, exit_code, "{kind:?}");
        }
    }
}
