//! `kms jwt sign`: claims in, a compact token out.

use clap::{Args, Subcommand};
use jiff::SignedDuration;
use kms_client::v1;

use crate::{
    connection::Connection, duration, failure::Failure, input::Claims, name::KeyName, output::Format, view,
};

/// The service's own limit on claims.
const CLAIMS_BYTES_MAX: usize = 64 * 1024;

/// Make JSON Web Tokens
#[derive(Debug, Args)]
pub(crate) struct Jwt {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Sign(SignJwt),
}

/// Sign claims, and print the compact token alone
#[derive(Debug, Args)]
struct SignJwt {
    /// Name of the key
    name: KeyName,
    /// The claims: a JSON object, @FILE, or - for standard input; at most 64 KiB
    #[arg(long, value_name = "JSON|@FILE|-")]
    claims: Claims,
    /// Life of the token from now on; needed unless the claims have `exp`, and then not allowed
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<SignedDuration>,
    /// The header's `typ` [default: JWT]
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    typ: String,
}

impl Jwt {
    pub(crate) async fn run(self, format: Format) -> Result<(), Failure> {
        let Verb::Sign(verb) = self.verb;
        let request = v1::SignJwtRequest {
            name: verb.name.to_string(),
            claims_json: verb.claims.read(CLAIMS_BYTES_MAX)?,
            ttl: verb.ttl.map(duration::to_wire),
            r#type: verb.typ,
        };
        let token = view::Jwt::from(self.connection.client().await?.sign_jwt(request).await?);
        format.print_text_or(token.token(), &token)
    }
}
