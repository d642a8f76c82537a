//! The verifiers that we did not write (`tests/clients`), each run as a program of its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

/// Every algorithm of the service, as its API names it. Written down once more, because a test that asked the
/// service would not see one go.
pub const ALGORITHMS: [&str; 23] = [
    "ES256",
    "ES384",
    "ES512",
    "RS256-2048",
    "RS256-3072",
    "RS256-4096",
    "RS384-2048",
    "RS384-3072",
    "RS384-4096",
    "RS512-2048",
    "RS512-3072",
    "RS512-4096",
    "PS256-2048",
    "PS256-3072",
    "PS256-4096",
    "PS384-2048",
    "PS384-3072",
    "PS384-4096",
    "PS512-2048",
    "PS512-3072",
    "PS512-4096",
    "Ed25519",
    "EdDSA",
];

/// The `alg` of an algorithm: its name without the size of the modulus.
pub fn jose_name(algorithm: &str) -> &str {
    algorithm.split_once('-').map_or(algorithm, |(alg, _)| alg)
}

/// A library that strangers verify tokens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verifier {
    /// PyJWT's PyJWKClient (Python).
    PyJwt,
    /// jose's createRemoteJWKSet (Node.js).
    Jose,
    /// go-oidc's RemoteKeySet (Go).
    GoOidc,
    /// go-jose alone (Go).
    GoJose,
}

/// What a verifier says about one token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It verified.
    Verified {
        /// Its claims.
        claims: Value,
    },
    /// Its signature does not fit.
    BadSignature {
        /// In the library's words.
        detail: String,
    },
    /// The library does not know the algorithm.
    UnsupportedAlgorithm {
        /// In the library's words.
        detail: String,
    },
    /// It is wrong in another way.
    Refused {
        /// In the library's words.
        detail: String,
    },
}

impl Verifier {
    /// All of them, in the order in which documents list them.
    pub const ALL: [Self; 4] = [Self::PyJwt, Self::Jose, Self::GoOidc, Self::GoJose];

    /// What its authors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PyJwt => "PyJWT",
            Self::Jose => "jose",
            Self::GoOidc => "go-oidc",
            Self::GoJose => "go-jose",
        }
    }

    /// Whether it is installed. One that is not is named, and is an error where `CI=true`.
    pub fn is_here(self) -> anyhow::Result<bool> {
        is_installed(self.name(), &self.needs())
    }

    /// Verifies `tokens`, each a pair of JOSE algorithm and token, through the JWKS at `jwks_url`. The verdicts
    /// come in the same order. The program's exit code must agree with them.
    pub async fn verify(
        self,
        jwks_url: &str,
        issuer: &str,
        audience: &str,
        tokens: &[(String, String)],
    ) -> anyhow::Result<Vec<Verdict>> {
        let [program, arguments @ ..] = &self.command()[..] else { bail!("no command") };
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .args([jwks_url, issuer, audience])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let lines: String = tokens.iter().map(|(alg, token)| format!("{alg} {token}\n")).collect();
        let (written, output) =
            tokio::join!(async move { stdin.write_all(lines.as_bytes()).await }, child.wait_with_output());
        written?;
        let output = output?;
        let verdicts: Vec<Verdict> = String::from_utf8(output.stdout)?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} does not speak JSON", self.name()))?;
        ensure!(verdicts.len() == tokens.len(), "{} gave {} verdicts", self.name(), verdicts.len());
        let all_verified = verdicts.iter().all(|verdict| matches!(verdict, Verdict::Verified { .. }));
        ensure!(output.status.code() == Some(i32::from(!all_verified)), "{}: {}", self.name(), output.status);
        Ok(verdicts)
    }

    pub(crate) fn command(self) -> Vec<PathBuf> {
        let mut command = self.needs();
        match self {
            Self::PyJwt | Self::GoOidc => {}
            // jose is what the script needs, and not an argument.
            Self::Jose => command = vec!["node".into(), command.swap_remove(0)],
            Self::GoJose => command.extend(["-library".into(), "go-jose".into()]),
        }
        command
    }

    /// Files without which it cannot run; `scripts/setup test` makes them.
    fn needs(self) -> Vec<PathBuf> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let built = target_dir().join("clients");
        match self {
            Self::PyJwt => vec![built.join("venv/bin/python"), sources.join("python/verify_jwt.py")],
            Self::Jose => vec![sources.join("node/verify_jwt.mjs"), sources.join("node/node_modules/jose")],
            Self::GoOidc | Self::GoJose => vec![built.join("verify_jwt")],
        }
    }
}

/// Python with the packages of `tests/clients/python`. When it is not installed it is named as left out, and is
/// an error where `CI=true`.
pub fn python() -> anyhow::Result<Option<PathBuf>> {
    let python = target_dir().join("clients/venv/bin/python");
    Ok(is_installed("the Python programs", std::slice::from_ref(&python))?.then_some(python))
}

/// Python with pkcs11-check, likewise.
pub fn pkcs11_check() -> anyhow::Result<Option<PathBuf>> {
    // The mark is made when all is well.
    let (venv, mark) = (target_dir().join("clients/pkcs11-check"), "installed.txt");
    Ok(is_installed("pkcs11-check", &[venv.join(mark)])?.then(|| venv.join("bin/python")))
}

#[expect(clippy::print_stderr, reason = "a test that is left out must not go unnoticed")]
fn is_installed(name: &str, needs: &[PathBuf]) -> anyhow::Result<bool> {
    let Some(missing) = needs.iter().find(|path| !path.exists()) else { return Ok(true) };
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    ensure!(!ci, "{name} cannot run: {} is missing", missing.display());
    eprintln!("LEFT OUT: {name}; to bring it, run: scripts/setup test");
    Ok(false)
}

fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("CARGO_TARGET_DIR") {
        // A relative one is relative to where cargo was called: the workspace, when make calls it.
        Some(dir) => workspace.join(dir),
        None => workspace.join("target"),
    }
}
