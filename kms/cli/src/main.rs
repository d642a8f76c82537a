//! `kms`: the one binary. Reads the arguments, does the command, and turns its outcome into an exit code.
//!
//! One file per group of verbs. A command returns [`Failure`] when it fails; only
//! [`output`] writes to the terminal. The server's processes are commands of the same binary: see [`serve`].

mod access;
mod access_token;
mod approvals;
mod bootstrap;
mod clock;
mod completions;
mod configuration;
mod connection;
mod context;
mod destination;
mod dev;
mod doctor;
mod duration;
mod env;
mod envelope;
mod failure;
mod hsm;
mod input;
mod jwks;
mod jwt;
mod kept;
mod keys;
mod migrate;
mod name;
mod output;
mod partial;
mod policy;
mod progress;
mod role;
mod serve;
mod sign;
mod status;
mod view;
mod wrapping;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kms_server::hygiene;

use crate::{failure::Failure, output::Format};

/// A small key management service in front of a PKCS#11 HSM
#[derive(Debug, Parser)]
#[command(name = "kms", version, after_help = failure::EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    /// How results are printed: for people, or all fields for programs
    #[arg(long, short, value_enum, global = true, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Dev),
    Keys(keys::Keys),
    Sign(sign::Sign),
    Verify(sign::Verify),
    Wrap(wrapping::Wrap),
    Unwrap(wrapping::Unwrap),
    Rewrap(wrapping::Rewrap),
    Datakey(wrapping::Datakey),
    Encrypt(wrapping::Encrypt),
    Decrypt(wrapping::Decrypt),
    ReEncrypt(wrapping::ReEncrypt),
    Envelope(envelope::Envelope),
    Env(env::Env),
    Jwt(jwt::Jwt),
    Jwks(jwks::Jwks),
    Access(access::Access),
    AccessToken(access_token::AccessToken),
    Policy(policy::Policy),
    Approvals(approvals::Approvals),
    Serve(serve::Serve),
    Bootstrap(bootstrap::Bootstrap),
    Config(configuration::ConfigCommand),
    Hsm(hsm::Hsm),
    Status(status::Status),
    Migrate(migrate::Migrate),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    /// The places at which a test may kill the front
    #[cfg(feature = "failpoints")]
    #[command(hide = true)]
    Failpoints,
    #[command(name = serve::FRONT, hide = true)]
    Front(serve::Front),
    /// The process that faces the HSM; started by `serve`
    #[command(name = serve::WORKER, hide = true)]
    Worker,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.command.run(cli.output).unwrap_or_else(|failure| {
        output::report(&failure);
        failure.code().into()
    })
}

impl Command {
    fn run(self, format: Format) -> Result<ExitCode, Failure> {
        match self {
            // The server's processes answer exit codes of their own.
            Self::Serve(command) => return command.run(),
            Self::Worker => return Ok(kms_pkcs11::worker::main()),
            Self::Front(command) => command.run(),
            Self::Dev(command) => block_on(command.run()),
            Self::Keys(command) => block_on(command.run(format)),
            Self::Sign(command) => block_on(command.run(format)),
            Self::Verify(command) => block_on(command.run(format)),
            Self::Wrap(command) => block_on(command.run(format)),
            Self::Unwrap(command) => block_on(command.run(format)),
            Self::Rewrap(command) => block_on(command.run(format)),
            Self::Datakey(command) => block_on(command.run(format)),
            Self::Encrypt(command) => block_on(command.run(format)),
            Self::Decrypt(command) => block_on(command.run(format)),
            Self::ReEncrypt(command) => block_on(command.run(format)),
            Self::Envelope(command) => block_on(command.run(format)),
            Self::Env(command) => block_on(command.run(format)),
            Self::Jwt(command) => block_on(command.run(format)),
            Self::Jwks(command) => block_on(command.run(format)),
            Self::Access(command) => block_on(command.run(format)),
            Self::AccessToken(command) => block_on(command.run(format)),
            Self::Policy(command) => block_on(command.run(format)),
            Self::Approvals(command) => block_on(command.run(format)),
            Self::Bootstrap(command) => block_on(command.run(format)),
            Self::Doctor(command) => block_on(command.run(format)),
            Self::Hsm(command) => block_on(command.run(format)),
            Self::Status(command) => block_on(command.run(format)),
            Self::Migrate(command) => block_on(command.run(format)),
            Self::Config(command) => command.run(format),
            Self::Completions(command) => command.run(),
            #[cfg(feature = "failpoints")]
            Self::Failpoints => {
                let names = kms_core::Failpoint::names();
                format.print_text_or(&names.join("\n"), &names)
            }
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// Runs a command that waits for one thing at a time: hardened as the server is, because credentials pass
/// through it, and on a runtime of one thread.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    hygiene::establish()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::about("cannot start the runtime"))?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_done() {
        for line in [
            "kms",
            "kms keys create web",
            "kms keys create keys/web/versions/1 --algorithm ES256",
            "kms keys create web --algorithm ES256 --label env",
            "kms keys create web --algorithm ES256 --rotation-period 90",
            "kms keys update web --label a=b --no-labels",
            "kms keys update web --no-claim-rules --issuer i",
            "kms keys rotate web --emergency --at 2027-01-31T04:00:00Z",
            "kms keys revoke web --version 1",
            "kms keys disable web",
            "kms keys disable web --version -1",
            "kms keys destroy web --version 1",
            "kms wrap",
            "kms wrap files --context tenant",
            "kms datakey files --length 8",
            "kms datakey files --without-plaintext --out f",
            "kms keys report-usage files --consumer db",
            "kms keys report-usage files --consumer db --envelopes 0=1",
            "kms keys update files --require-context a --no-required-context",
            "kms envelope seal --key files",
            "kms envelope rewrap --key files --rate 0 d",
            "kms envelope open --key files --existing keep f",
            "kms env run --key files",
            "kms env run --key files env",
            "kms jwt sign web",
            "kms jwt sign web --claims sub=alice",
            "kms jwt sign web --claims {} --ttl soon",
            "kms access-token create ci --role user",
            "kms access-token create ci --role user --all-keys --key web",
            "kms access-token create ci --role root --all-keys",
            "kms access-token create ci --all-keys",
            "kms access-token create ci --renewable-for 30d",
            "kms access-token create ci --period 1d --renewable-for 30d --renewable-until 2027-01-31T04:00:00Z",
            "kms access-token create ci --bound-to DNS:db1",
            "kms access grant user --to unix:1",
            "kms access grant user --on *",
            "kms access grant root --to unix:1 --on *",
            "kms access grant user --to ci --on *",
            "kms access grant user --to unix:1 --on keys/web",
            "kms access grant user --to unix:1 --on * --name Ci",
            "kms access grant user --to unix:1 --on * --context tenant",
            "kms access grant user --to unix:1 --on * --for 30d --until 2027-01-31T04:00:00Z",
            "kms policy set policy.cedar",
            "kms policy get latest",
            "kms policy explain ci sign",
            "kms approvals show 1",
            "kms approvals approve",
            "kms keys class-update root --approvals 9",
            "kms keys class-update root --approvals -1",
            "kms bootstrap --another A/b",
            "kms dev --grpc-addr 192.0.2.1:8443",
            "kms hsm accept-older-store",
            "kms keys list -o xml",
            "kms hsm inventory --state lost",
            "kms hsm quarantine 0a1b",
            "kms hsm quarantine web --note n",
            "kms migrate sqlite-to-postgres",
            "kms jwks bundle",
            "kms jwks web bundle --key publisher",
            "kms jwks bundle --key publisher --ttl soon",
        ] {
            assert_eq!(parse(line).err().map(|error| error.exit_code()), Some(2), "{line}");
        }
    }

    #[test]
    fn what_the_documents_show_is_understood() {
        for line in [
            "kms dev --dir d --grpc-addr 127.0.0.1:0 --http-addr 0.0.0.0:8080",
            "kms keys create web --algorithm ES256 --owner me --label a=b --label c=d --rotation-period 90d",
            "kms keys update web --rotation-period never",
            "kms keys update web --issuer i",
            "kms keys update web --rotation-period never --inherit publish-lead --etag 3",
            "kms keys destroy web --version 1 --confirm keys/web/versions/1",
            "kms -o json keys list --filter labels.a=b",
            "kms keys list -o yaml --addr localhost:8443 --cacert ca.pem --token-file t --timeout 5s",
            "kms sign web --in - --out - --digest --format jose",
            "kms verify keys/web --signature f --version 2",
            "kms jwt sign web --claims @claims.json --ttl 15m --type at+jwt",
            "kms jwks web --http-addr http://localhost:8080",
            "kms jwks",
            "kms jwks keys/bundle",
            "kms jwks bundle --key publisher",
            "kms jwks bundle --key publisher --of web --of keys/api --ttl 30m --out keys.json --addr localhost:8443",
            "kms access-token create ci --role user --key web --key keys/api --ttl 30d",
            "kms access-token create ci --role raw-signer --key web",
            "kms access-token create rewrap --role recoverer --key files",
            "kms keys create files --algorithm A256GCMKW --require-context tenant --require-context table",
            "kms keys usage files",
            "kms keys report-usage files --consumer db --envelopes 1=5,2=7",
            "kms keys consumers remove files db",
            "kms keys destroy files --version 1 --confirm keys/files/versions/1 --attest none",
            "kms wrap files --context tenant=a --context table=b --in - --base64",
            "kms unwrap files --in f --out -",
            "kms re-encrypt files --in f --out f",
            "kms encrypt files --context a=b --payload-context c=d=e",
            "kms envelope seal --key files a b --existing skip",
            "kms envelope open --key files - --force",
            "kms envelope inspect -r d -o json",
            "kms envelope rewrap --key files -r d --rate 100 --consumer archive --addr a:1,b:1",
            "kms env seal --key files --file .env --context stage=prod",
            "kms env run --key files --file .env.sealed --keep-kms-env -- sh -c env",
            "kms access-token create ci",
            "kms access-token create ci --period 7d --renewable-for 90d --bound-to spiffe://example.org/ci",
            "kms access-token create ci --period 7d --renewable-until 2027-01-31T04:00:00Z",
            "kms access-token renew",
            "kms access grant user --to spiffe://example.org/ci --on class:jwt-signing --only sign_jwt,get_key",
            "kms access grant key-admin --to jwt:corp/me --on label:env=prod --name me --for 30d",
            "kms access grant unsealer --to unix:0 --on key:root --context a=b --context c=d",
            "kms access grant auditor --to dns:db1 --on * --from 2027-01-31T04:00:00Z --until 2028-01-31T04:00:00Z",
            "kms access revoke roleBindings/me",
            "kms access list -o json",
            "kms access whoami",
            "kms policy get 3",
            "kms policy versions",
            "kms policy set policy.cedar --note why --expected policies/3 --allow-empty",
            "kms policy schema",
            "kms policy test examples.toml --document -",
            "kms policy explain unix:1 encrypt files --context tenant=a",
            "kms policy explain unix:1 set_policy",
            "kms approvals list --open",
            "kms approvals show proposals/0123456789abcdef0123456789abcdef",
            "kms approvals approve 0123456789abcdef0123456789abcdef --note seen --yes",
            "kms approvals reject 0123456789abcdef0123456789abcdef --note no",
            "kms approvals execute 0123456789abcdef0123456789abcdef --out f",
            "kms keys class-update root --approvals 2",
            "kms bootstrap --config kms.toml --another second --out f",
            "kms serve --config kms.toml --workers 4 --log-level debug",
            "kms config check --config kms.toml",
            "kms hsm login --config kms.toml",
            "kms hsm init --module-path m.so --label l --so-pin-file s --pin-file p",
            "kms hsm accept-older-store --confirm 0f1e2d3c4b5a6978 --addr localhost:8443",
            "kms hsm inventory --state orphan -o json --addr localhost:8443",
            "kms hsm quarantine 0a1b --note n --token-file t",
            "kms status -o json --addr localhost:8443",
            "kms migrate sqlite-to-postgres --from kms.db --config kms.toml",
            "kms completions bash",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }
}
