//! Real signatures, real files and a real HTTP server; only the clock is turned by hand.

mod authority;
mod claims;
mod files;
mod forged;
mod identity_provider;
mod issuers_that_fail;
mod key_ids;
mod key_sets;
mod nonsense;
mod refusals;
mod signer;
mod subjects;

use std::{fs, path::PathBuf, sync::Arc};

use kms_core::fakes::ManualClock;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::signer::Signer;
use super::{Issuers, Limits, refusal::Refusal};
use crate::config::{Authn, JwtIssuer};

/// Where the clock stands at first, in seconds since 1970.
const NOW: i64 = 1_800_000_000;
const ISS: &str = "https://kubernetes.default.svc.cluster.local";

/// The cluster, as an issuer whose keys are in a file, and its keys.
struct Cluster {
    clock: Arc<ManualClock>,
    issuers: Issuers,
    signer: Signer,
    keys: PathBuf,
    _dir: TempDir,
}

impl Cluster {
    fn new(signer: Signer) -> Self {
        let set = json!({"keys": [signer.jwk()]});
        Self::with(signer, &set, "")
    }

    /// With a key set of one's own and more lines of configuration.
    fn with(signer: Signer, set: &Value, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let keys = dir.path().join("keys.json");
        fs::write(&keys, set.to_string()).expect("written");
        let rules = rules(&format!("jwks_file = {keys:?}\n{more}"));
        let clock = Arc::new(ManualClock::default());
        let issuers = Issuers::new(&rules, clock.clone());
        Self { clock, issuers, signer, keys, _dir: dir }
    }

    /// What becomes of a token.
    async fn said(&self, token: &str) -> Result<String, Refusal> {
        said(&self.issuers, token).await
    }

    /// What becomes of a token of the cluster with other claims.
    async fn said_of(&self, claims: &Value) -> Result<String, Refusal> {
        self.said(&self.signer.token(claims)).await
    }
}

/// What becomes of a token.
async fn said(issuers: &Issuers, token: &str) -> Result<String, Refusal> {
    let decision = issuers.decide(token).await.1;
    assert_eq!(issuers.principal(token).await.is_some(), decision.is_ok(), "one decision");
    decision.map(|principal| principal.as_str().to_owned())
}

/// The issuer `cluster`, with these lines of configuration.
fn rules(more: &str) -> Vec<JwtIssuer> {
    let text = format!("[[jwt_issuer]]\nname = \"cluster\"\nissuer = {ISS:?}\naudiences = [\"kms\"]\n{more}");
    toml::from_str::<Authn>(&text).expect("a configuration").jwt_issuer
}

/// What Kubernetes puts into a service account's token that is bound to a pod and to our audience.
fn service_account() -> Value {
    json!({
        "aud": ["kms"],
        "exp": NOW + 3_600,
        "iat": NOW,
        "iss": ISS,
        "jti": "6a5cf37e-2d5a-4c02-a2ff-0d1d5a2e4f6b",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "node-1", "uid": "b3ac6f4c-0a8e-4d5b-8f0c-0a4c2f8f3b1d"},
            "pod": {"name": "auth-7c9d", "uid": "0c1a7e3b-58ff-4d21-9a77-7e6a4e4dc1a2"},
            "serviceaccount": {"name": "auth", "uid": "f4e0c1d2-9f0a-4f5e-bb7e-1d2c3b4a5968"}
        },
        "nbf": NOW,
        "sub": "system:serviceaccount:shop:auth"
    })
}

/// The same with one claim changed, or taken away.
fn with(name: &str, value: impl Into<Option<Value>>) -> Value {
    let mut claims = service_account();
    match value.into() {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().expect("an object").remove(name)),
    }
    claims
}

const AUTH: &str = "jwt:cluster/system:serviceaccount:shop:auth";

#[tokio::test]
async fn a_service_account_of_kubernetes_is_known_whatever_the_algorithm() {
    for signer in [Signer::rs256("k1"), Signer::es256("k1"), Signer::es384("k1"), Signer::ed25519("k1")] {
        let set = json!({"keys": [signer.jwk()]});
        let more = "algorithms = [\"RS256\", \"ES256\", \"ES384\", \"EdDSA\"]";
        let cluster = Cluster::with(signer, &set, more);
        let principal = cluster.said_of(&service_account()).await;
        assert_eq!(principal, Ok(AUTH.to_owned()), "{}", cluster.signer.algorithm());
    }
}

#[tokio::test]
async fn every_rsa_algorithm_verifies_its_own_signatures_and_no_others() {
    let names = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    let signer = Signer::rs256("k1");
    let mut jwk = signer.jwk();
    jwk.as_object_mut().expect("an object").remove("alg");
    let more = format!("algorithms = {names:?}");
    let cluster = Cluster::with(signer, &json!({"keys": [jwk]}), &more);
    for signed_as in names {
        for said_as in names {
            let header = json!({"alg": said_as, "kid": "k1"});
            let token =
                cluster.signer.token_as(signed_as, &header.to_string(), &service_account().to_string());
            let expected = if signed_as == said_as { Ok(AUTH.to_owned()) } else { Err(Refusal::Signature) };
            assert_eq!(cluster.said(&token).await, expected, "{signed_as} as {said_as}");
        }
    }
}
