//! Keys cannot be carried out of the token, even with our own PIN (promise 15): attacks that put careless keys
//! together outside the token fail on every key that the service makes, and so do those of pkcs11-check (PyPI).

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_softhsm::{EphemeralToken, Token, unless_left_out};
use kms_tests::{ALGORITHMS, Output, Plan, Promise, TestHsm, pkcs11_check, python};
use serde_json::Value;

/// One algorithm for each kind of key: what `make test` makes.
const KINDS: [&str; 7] = ["ES256", "ES384", "ES512", "PS256-2048", "RS256-3072", "RS512-4096", "Ed25519"];

/// One for each kind of key that wraps. SoftHSM 2.6.1 has no OAEP with SHA-256.
const WRAPPING_KINDS: [&str; 2] = ["A256GCMKW", "RSA-OAEP-256-2048"];

/// Attacks that must put a careless key of the attacker's own together: one that recovers no key proves nothing.
const PROVEN_ON_SOFTHSM: [&str; 10] = [
    "open AES: read VALUE",
    "wrappable AES: wrap itself AES_CBC",
    "open EC: read VALUE",
    "open RSA: read PRIME_1",
    "wrappable EC: wrap AES_KEY_WRAP_PAD",
    "wrappable RSA: wrap AES_KEY_WRAP_PAD",
    "wrappable RSA: wrap AES_KEY_WRAP",
    "wrappable AES: wrap AES_CBC",
    "wrappable AES: wrap RSA_PKCS",
    "wrappable AES: wrap RSA_PKCS_OAEP",
];
const PROVEN_ON_KRYOPTIC: [&str; 11] = [
    "open AES: read VALUE",
    "wrappable AES: wrap itself AES_KEY_WRAP",
    "open EC: read VALUE",
    "open RSA: read PRIVATE_EXPONENT",
    "wrappable EC: wrap AES_KEY_WRAP_KWP",
    "wrappable RSA: wrap AES_CBC_PAD",
    "wrappable RSA: wrap AES_GCM",
    "wrappable EC: wrap RSA_PKCS_OAEP",
    "wrappable AES: wrap AES_KEY_WRAP",
    // It is not extractable; what keeps our keys from this is that they may not be changed or copied.
    "changeable EC: set CLASS DATA",
    "changeable EC: copy CLASS DATA",
];

/// What the token does for anybody with the PIN, whatever a key's attributes are, and gives no key away.
///
/// SoftHSM 2.6.1 digests each object that has a CKA_VALUE: a digest of 256 random bits or more is no way to find them.
const ALLOWED_ON_SOFTHSM: &[&str] = &["digest"];
/// To decrypt is what one key is for, with whatever hash. Kryoptic 1.5.4 digests secret keys likewise.
const ALLOWED_ON_KRYOPTIC: &[&str] = &["rsa-oaep-256-2048/1: decrypt RSA_PKCS_OAEP", "a256gcmkw/1: digest"];

/// The files of pkcs11-check that are about keys getting out. (The rest of its security marker is about modules that
/// crash, or take wrong parameters.)
const SUITE: [&str; 6] = [
    "security/test_tookan.py",
    "security/test_api_security.py",
    "security/test_unwrap_reimport.py",
    "test_sensitivity.py",
    "test_setattr_restricted.py",
    "test_key_flags.py",
];

/// Findings about the token: what somebody with the PIN can do to keys of their own.
const FINDINGS_ON_SOFTHSM: &[&str] = &[
    // It unwraps an AES key as a DES3 key of the wrong length.
    "test_unwrap_aes_as_des3_rejected",
];
const FINDINGS_ON_KRYOPTIC: &[&str] = &[
    // It changes CKA_CLASS of a key that may be changed. Ours may not.
    "test_cannot_mutate_class",
];

/// Tests of pkcs11-check that do not come to their end with a key of ours, and the reason that they give. A test that
/// says anything else, or does not pass, fails.
const NOT_APPLICABLE: [(&str, &str); 7] = [
    // It would look at a copy, and ours may not be copied.
    ("test_sensitive_preserved_on_copy", "Unexpected CK_RV CKR_ACTION_PROHIBITED"),
    // Ours sign, and have no value to encrypt with.
    ("test_cbc_wrap_then_decrypt_extraction_oracle", "cannot AES-CBC-encrypt the reference plaintext"),
    // SoftHSM does not wrap with it.
    ("test_wrap_decrypt_combination_prevented", "CKR_MECHANISM_INVALID"),
    // An elliptic curve's key has no private exponent, and an RSA key no value: the token knows no such attribute.
    ("test_private_key_not_extractable", "attribute unavailable"),
    ("test_sensitive_rsa_private_exponent_not_readable", "attribute unavailable"),
    ("test_sensitive_aes_value_not_readable", "attribute unavailable"),
    // It expects a secret key. Our own attacker tries this.
    ("test_cannot_mutate_class", "reported class 3 instead of CKO_SECRET_KEY"),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_ours_leaves_softhsm_with_our_own_pin_by_attacks_that_carry_careless_keys_out()
-> anyhow::Result<()> {
    let token = EphemeralToken::new()?;
    no_key_leaves(token, "SoftHSM", &PROVEN_ON_SOFTHSM, ALLOWED_ON_SOFTHSM, FINDINGS_ON_SOFTHSM).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_ours_leaves_kryoptic_with_our_own_pin_by_attacks_that_carry_careless_keys_out()
-> anyhow::Result<()> {
    let Some(token) = unless_left_out(EphemeralToken::kryoptic())? else { return Ok(()) };
    no_key_leaves(token, "Kryoptic", &PROVEN_ON_KRYOPTIC, ALLOWED_ON_KRYOPTIC, FINDINGS_ON_KRYOPTIC).await
}

/// The control: what finds nothing on our keys finds this.
#[test]
fn a_careless_key_in_the_token_is_recovered_and_pkcs11_check_tells_what_is_wrong_with_it()
-> anyhow::Result<()> {
    let token = EphemeralToken::new()?;
    let ids = ["01", "02"];
    for (id, kind) in ids.into_iter().zip(["EC:prime256v1", "rsa:2048"]) {
        let arguments =
            ["--keypairgen", "--key-type", kind, "--id", id, "--label", "careless", "--extractable"];
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(token.module())
            .args(["--login", "--pin", "env:KMS_TEST_PIN"])
            .args(arguments)
            .env("KMS_TEST_PIN", pin(&token)?)
            .env(token.env().0, token.env().1)
            .output()
            .context("pkcs11-tool")?;
        Output::of("pkcs11-tool --keypairgen", output).text()?;
    }
    if let Some(python) = python()? {
        let attacks = attack(&python, &token)?;
        let recovered =
            |attack: &Value| attack["attack"] == "wrap AES_KEY_WRAP" && attack["recovered"] == true;
        for id in ids {
            ensure!(attacks.iter().any(|attack| attack["id"] == id && recovered(attack)), "{attacks:#?}");
        }
    }
    if let Some(python) = pkcs11_check()? {
        let verdicts = suite(&python, &token, &ids.map(str::to_owned))?;
        for (test, says) in [
            ("test_extractable_cannot_be_set_true", "CKA_EXTRACTABLE escalated"),
            ("test_wrap_decrypt_extraction_attempt", "wrap-decrypt oracle extracts"),
        ] {
            let telling =
                |verdict: &&Verdict| verdict.is_of(test) && !verdict.passed && verdict.says.contains(says);
            let told: Vec<_> =
                verdicts.iter().filter(telling).filter_map(|verdict| verdict.aimed.as_deref()).collect();
            // Whether its attack on a careless key works out depends on the length of that key's encoding: by chance.
            let seen = !told.is_empty() && told.iter().all(|id| ids.contains(id));
            ensure!(seen, "{test} sees nothing wrong with any of {ids:?}: {verdicts:#?}");
        }
    }
    Ok(())
}

async fn no_key_leaves(
    token: EphemeralToken,
    name: &str,
    proven: &[&str],
    allowed: &[&str],
    findings: &[&str],
) -> anyhow::Result<()> {
    let promise = Promise::begin(15, "extraction")?;
    let Some(python) = python()? else { return Ok(()) };
    let plan = Plan::on(TestHsm::Local(token))?;
    plan.bootstrap().await?;
    let mut server = plan.start().await?;
    let keys = make_keys(&server.client().await?, name).await?;
    // A login beside that of a worker could harm a SoftHSM token.
    server.running.terminate().await?;
    let plan = server.plan;
    let ids = plan.token.private_key_ids()?;
    let secret_ids = plan.token.secret_key_ids()?;
    let count = ids.len() + secret_ids.len();
    ensure!(count == keys.len() && secret_ids.len() == 1, "{count} keys of {} are in the token", keys.len());

    let attacks = attack(&python, &plan.token)?;
    let ours: Vec<_> = attacks.iter().filter(|attack| attack["bait"] == false).collect();
    let attacked: BTreeSet<_> = ours.iter().filter_map(|attack| attack["id"].as_str()).collect();
    let all: BTreeSet<_> = ids.iter().chain(&secret_ids).map(String::as_str).collect();
    ensure!(attacked == all, "not every key was attacked: {attacked:?}");
    ensure!(ours.iter().all(|attack| attack["recovered"] == false), "a key of ours was recovered: {ours:#?}");
    let is_allowed = |attack: &Value| {
        let name = attack["attack"].as_str().unwrap_or_default();
        allowed.contains(&name) || allowed.contains(&named(attack).as_str())
    };
    let succeeded: Vec<_> =
        ours.iter().filter(|attack| attack["answer"].is_null() && !is_allowed(attack)).collect();
    ensure!(succeeded.is_empty(), "these attacks on keys of ours succeeded: {succeeded:#?}");
    let recovered: BTreeSet<_> =
        attacks.iter().filter(|attack| attack["recovered"] == true).map(named).collect();
    for proof in proven {
        ensure!(recovered.contains(*proof), "{proof:?} recovers no careless key any more: {recovered:#?}");
    }

    let checked = match pkcs11_check()? {
        Some(python) => check(&python, &plan.token, &ids, findings)?,
        None => 0,
    };
    let left = (plan.token.private_key_ids()?, plan.token.secret_key_ids()?);
    ensure!(left == (ids, secret_ids), "keys came or went");
    let server = plan.start().await?;
    let client = server.client().await?;
    for key in &keys {
        key.still_works(&client).await.with_context(|| format!("{} does not work any more", key.name))?;
    }
    promise.kept(
        format!("{name}: attacks on each of {} keys with our own PIN", keys.len()),
        format!(
            "0 keys recovered by {} attacks of our own and {checked} of pkcs11-check; careless keys recovered in {} \
             ways",
            ours.len(),
            recovered.len()
        ),
    );
    Ok(())
}

/// A key of ours.
struct Made {
    name: String,
    /// [`TEXT`], wrapped with it before the attacks, if it wraps.
    wrapped: Option<Vec<u8>>,
}

/// What the keys sign or wrap.
const TEXT: &[u8; 32] = b"what was wrapped before still is";

impl Made {
    async fn still_works(&self, client: &Client) -> anyhow::Result<()> {
        let name = self.name.clone();
        let Some(wrapped_key) = self.wrapped.clone() else {
            // The service verifies what it releases under the public key that it has on record.
            let input = Some(v1::sign_request::Input::Message(TEXT.to_vec()));
            client.crypto().sign(v1::SignRequest { name, input, ..Default::default() }).await?;
            return Ok(());
        };
        let request = v1::UnwrapKeyRequest { name, wrapped_key, ..Default::default() };
        ensure!(client.unwrap_key(request).await?.plaintext == TEXT, "something else was wrapped");
        Ok(())
    }
}

/// Makes a key of each algorithm, or of each kind of key, that the token has.
async fn make_keys(client: &Client, token: &str) -> anyhow::Result<Vec<Made>> {
    let signing: &[&str] = if Promise::is_full() { &ALGORITHMS } else { &KINDS };
    let mut keys = Vec::new();
    for algorithm in signing.iter().chain(&WRAPPING_KINDS) {
        // OpenSSL 3.0 gives Kryoptic no Ed25519.
        let lacks = if token == "Kryoptic" { "Ed" } else { "RSA-OAEP" };
        if algorithm.starts_with(lacks) {
            continue;
        }
        let key = Some(v1::Key { algorithm: (*algorithm).to_owned(), ..Default::default() });
        let request = v1::CreateKeyRequest { key_id: algorithm.to_lowercase(), key, ..Default::default() };
        let name = client.create_key(request).await.with_context(|| (*algorithm).to_owned())?.name;
        let mut wrapped = None;
        if WRAPPING_KINDS.contains(algorithm) {
            let (name, plaintext) = (name.clone(), TEXT.to_vec());
            let request = v1::WrapKeyRequest { name, plaintext, ..Default::default() };
            wrapped = Some(client.wrap_key(request).await?.wrapped_key);
        }
        keys.push(Made { name, wrapped });
    }
    Ok(keys)
}

/// Runs `tests/clients/python/attack_token.py`; one object for each attack.
fn attack(python: &Path, token: &Token) -> anyhow::Result<Vec<Value>> {
    let output = Command::new(python)
        .arg(clients().join("attack_token.py"))
        .args([token.module(), token.pin_file()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(token.env().0, token.env().1)
        .output()?;
    let output = Output::of("attack_token.py", output);
    ensure!(output.stderr.is_empty(), "{}", output.stderr);
    output.stdout.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Key and attack.
fn named(attack: &Value) -> String {
    let text = |field: &str| attack[field].as_str().unwrap_or_default();
    format!("{}: {}", text("key"), text("attack"))
}

/// Runs pkcs11-check against the token, and then aimed at each of our keys; how many of its tests had one.
fn check(python: &Path, token: &Token, ids: &[String], findings: &[&str]) -> anyhow::Result<usize> {
    let of_the_token = suite(python, token, &[])?;
    let failed: Vec<_> = of_the_token
        .iter()
        .filter(|verdict| verdict.failed && !findings.iter().any(|name| verdict.is_of(name)))
        .collect();
    ensure!(of_the_token.len() >= 50 && failed.is_empty(), "pkcs11-check found something new: {failed:#?}");

    let verdicts = suite(python, token, ids)?;
    let aimed: Vec<_> = verdicts.iter().filter(|verdict| verdict.aimed.is_some()).collect();
    ensure!(aimed.len() >= 15 * ids.len(), "only {} tests were aimed at a key of ours", aimed.len());
    let not_applicable = |verdict: &Verdict| {
        NOT_APPLICABLE.iter().any(|(name, says)| verdict.is_of(name) && verdict.says.contains(says))
    };
    let bad: Vec<_> = aimed.iter().filter(|verdict| !verdict.passed && !not_applicable(verdict)).collect();
    ensure!(bad.is_empty(), "pkcs11-check found something wrong with keys of ours: {bad:#?}");
    Ok(aimed.iter().filter(|verdict| verdict.passed).count())
}

/// What a test of pkcs11-check says.
#[derive(Debug)]
struct Verdict {
    /// Its file and name.
    test: String,
    /// CKA_ID of the key that it was given.
    aimed: Option<String>,
    passed: bool,
    /// Else it was skipped, or says that it cannot tell.
    failed: bool,
    says: String,
}

impl Verdict {
    fn is_of(&self, name: &str) -> bool {
        let (test, _) = self.test.split_once('[').unwrap_or((&self.test, ""));
        test.ends_with(&format!("::{name}"))
    }
}

/// Runs the suite, as it is or aimed at the keys with these CKA_IDs.
fn suite(python: &Path, token: &Token, ids: &[String]) -> anyhow::Result<Vec<Verdict>> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("report.jsonl");
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "--quiet", "--tb=line", "-p", "no:cacheprovider"]);
    if !ids.is_empty() {
        command.args(["-p", "aim_at_keys"]).env("KMS_CKA_IDS", ids.join(",")).env("PYTHONPATH", clients());
    }
    let installed = Command::new(python)
        .args(["-c", "import pkcs11_check.testcases as t; print(t.__path__[0])"])
        .output()?;
    let installed = Output::of("pkcs11_check.testcases", installed);
    let testcases = Path::new(installed.text()?);
    let output = command
        .arg("--report-log")
        .arg(&log)
        .arg("--p11-module")
        .arg(token.module())
        .args(["--p11-slot", "0"])
        .args(SUITE.map(|file| testcases.join(file)))
        .current_dir(dir.path())
        .env("P11TEST_PIN", pin(token)?)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(token.env().0, token.env().1)
        .output()?;
    let output = Output::of("pkcs11-check", output);
    // 1: some tests failed.
    ensure!(matches!(output.code, Some(0 | 1)), "{}\n{}", output.stdout, output.stderr);
    fs::read_to_string(log)?.lines().filter_map(|line| verdict(line).transpose()).collect()
}

/// The verdict in a line of the report, if it has one.
fn verdict(line: &str) -> anyhow::Result<Option<Verdict>> {
    let report: Value = serde_json::from_str(line)?;
    let outcome = report["outcome"].as_str().unwrap_or_default();
    let tells = report["when"] == "call" || outcome != "passed";
    if report["$report_type"] != "TestReport" || !tells {
        return Ok(None);
    }
    let properties = report["user_properties"].as_array().cloned().unwrap_or_default();
    let aimed = properties.iter().find(|property| property[0] == "aimed");
    Ok(Some(Verdict {
        test: report["nodeid"].as_str().context("no nodeid")?.to_owned(),
        aimed: aimed.and_then(|property| property[1].as_str()).map(str::to_owned),
        passed: outcome == "passed",
        failed: outcome == "failed",
        says: format!("{} {}", report["wasxfail"], report["longrepr"]),
    }))
}

fn clients() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python"))
}

fn pin(token: &Token) -> anyhow::Result<String> {
    Ok(fs::read_to_string(token.pin_file())?.trim_end().to_owned())
}
