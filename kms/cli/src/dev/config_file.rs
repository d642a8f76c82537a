//! `DIR/kms.toml`: the development server's configuration, an ordinary one that `kms serve` reads.

use std::{net::SocketAddr, path::Path};

use serde::Serialize;

use super::certificates::{CERTIFICATE_FILE, KEY_FILE};

const HEAD: &str = "# Written by `kms dev` at each start; changes are lost. DEVELOPMENT ONLY.\n\n";

/// Path of the store's SQLite file, from the directory; its directory is the store's own.
const STORE_FILE: &str = "store/kms.db";
/// Directory of the audit log.
const AUDIT_DIR: &str = "audit";

/// What differs from one development server to another.
pub(super) struct Settings<'a> {
    pub(super) grpc_addr: SocketAddr,
    pub(super) http_addr: SocketAddr,
    /// Where verifiers find the JWKS.
    pub(super) issuer: &'a str,
    /// RFC 7512 URI of the token.
    pub(super) hsm_uri: &'a str,
}

#[derive(Serialize)]
struct File<'a> {
    grpc: Grpc,
    http: Http<'a>,
    hsm: Hsm<'a>,
    store: Store,
    audit: Audit,
}

#[derive(Serialize)]
struct Grpc {
    addr: SocketAddr,
    tls_cert_file: &'static str,
    tls_key_file: &'static str,
    reflection: bool,
}

#[derive(Serialize)]
struct Http<'a> {
    addr: SocketAddr,
    issuer: &'a str,
}

#[derive(Serialize)]
struct Hsm<'a> {
    uri: &'a str,
}

#[derive(Serialize)]
struct Store {
    path: &'static str,
}

#[derive(Serialize)]
struct Audit {
    dir: &'static str,
}

impl Settings<'_> {
    /// The file's text. Relative paths in it start at the file's directory.
    pub(super) fn to_toml(&self) -> anyhow::Result<String> {
        let file = File {
            grpc: Grpc {
                addr: self.grpc_addr,
                tls_cert_file: CERTIFICATE_FILE,
                tls_key_file: KEY_FILE,
                reflection: true,
            },
            http: Http { addr: self.http_addr, issuer: self.issuer },
            hsm: Hsm { uri: self.hsm_uri },
            store: Store { path: STORE_FILE },
            audit: Audit { dir: AUDIT_DIR },
        };
        Ok(format!("{HEAD}{}", toml::to_string(&file)?))
    }
}

/// The directories that the configuration names and that the server does not make.
pub(super) fn directories(dir: &Path) -> [std::path::PathBuf; 2] {
    let store = Path::new(STORE_FILE).parent().unwrap_or(Path::new(""));
    [dir.join(store), dir.join(AUDIT_DIR)]
}
