//! A decoder that shares no line with ours (`tests/clients/python/open_envelope.py`) reads the vectors, and envelopes made
//! just now, and says the same of each (promise 13).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use kms_envelope::{
    CHUNK_LEN, DataKey, DataKeyId, EncryptionContext, EnvelopeContext, Purpose, RandomError, SealHeader,
    Sealer, WrapAlgorithm, WrapHeader, WrappedKey,
};
use kms_tests::python;
use serde_json::{Value, json};

#[test]
fn another_decoder_opens_what_should_open_and_seals_it_to_the_same_bytes() -> anyhow::Result<()> {
    let file = vectors().join("opens.json");
    let Some(verdicts) = verdicts(&file)? else { return Ok(()) };
    for vector in read(&file)? {
        let name = text(&vector, "name")?;
        let verdict = verdicts.get(name).with_context(|| format!("no word about {name}"))?;
        ensure!(verdict["verdict"] == "opened", "{name}: {verdict}");
        ensure!(verdict["plaintext_sha256"] == vector["plaintext_sha256"], "{name}: another plaintext");
        ensure!(verdict["sealed_sha256"] == vector["envelope_sha256"], "{name}: sealed to other bytes");
    }
    Ok(())
}

#[test]
fn another_decoder_opens_nothing_that_should_not_open() -> anyhow::Result<()> {
    let file = vectors().join("refused.json");
    let Some(verdicts) = verdicts(&file)? else { return Ok(()) };
    let refused = read(&file)?;
    ensure!(refused.len() >= 40, "only {} vectors", refused.len());
    for vector in refused {
        let name = text(&vector, "name")?;
        let verdict = verdicts.get(name).with_context(|| format!("no word about {name}"))?;
        ensure!(verdict["verdict"] == vector["error"], "{name}: {verdict}");
    }
    Ok(())
}

#[test]
fn another_decoder_opens_fresh_streams_of_every_size_at_which_something_changes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut made = Vec::new();
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 5 * CHUNK_LEN + 12_345] {
        made.push(fresh(dir.path(), len)?);
    }
    let file = dir.path().join("fresh.json");
    fs::write(&file, json!({ "vectors": made }).to_string())?;
    let Some(verdicts) = verdicts(&file)? else { return Ok(()) };
    for vector in made {
        let verdict = &verdicts[text(&vector, "name")?];
        ensure!(verdict["plaintext_sha256"] == vector["plaintext_sha256"], "{}: {verdict}", vector["name"]);
    }
    Ok(())
}

/// Seals `len` random bytes under a random data key, into a file of `dir`.
fn fresh(dir: &Path, len: usize) -> anyhow::Result<Value> {
    let pair = |name: &str, value: String| EncryptionContext::new([(name.to_owned(), value)]);
    let context =
        EnvelopeContext { key: pair("kind", "fresh".to_owned())?, local: pair("len", len.to_string())? };
    let data_key = DataKey::generate(random)?;
    let data_key_id = DataKeyId::generate(random)?;
    let header = WrapHeader {
        algorithm: WrapAlgorithm::A256GcmKw,
        purpose: Purpose::Native,
        key_uid: [7; 16],
        key_version: NonZeroU32::MIN,
        data_key_id,
        context_digest: context.key.digest(),
    };
    // Nobody unwraps it here: the data key is in the vector.
    let recipients = vec![WrappedKey::new(header, vec![0; 60])?];
    let mut plaintext = vec![0; len];
    random(&mut plaintext)?;

    let name = format!("fresh-{len}");
    let to = BufWriter::new(File::create(dir.join(&name))?);
    let seal_header = SealHeader { recipients, purpose: Purpose::Native, data_key_id };
    let mut sealer = Sealer::new(to, &data_key, seal_header, &context, random)?;
    sealer.write_all(&plaintext)?;
    sealer.finish()?;
    Ok(json!({
        "name": name,
        "purpose": "native",
        "data_key": hex(data_key.expose_secret()),
        "key_context": {"kind": "fresh"},
        "local_context": {"len": len.to_string()},
        "envelope_file": name,
        "plaintext_sha256": hex(digest(&SHA256, &plaintext).as_ref()),
    }))
}

#[expect(clippy::disallowed_methods, reason = "a test's own keys")]
fn random(bytes: &mut [u8]) -> Result<(), RandomError> {
    rand::fill(bytes).map_err(|_| RandomError)
}

/// What the decoder says of each vector of a file; nothing if it is not installed.
fn verdicts(file: &Path) -> anyhow::Result<Option<BTreeMap<String, Value>>> {
    let Some(python) = python()? else { return Ok(None) };
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/open_envelope.py");
    let output = Command::new(python).args(["-B".into(), program, file.to_owned()]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut verdicts = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let verdict: Value = serde_json::from_str(line)?;
        verdicts.insert(text(&verdict, "name")?.to_owned(), verdict);
    }
    Ok(Some(verdicts))
}

fn read(file: &Path) -> anyhow::Result<Vec<Value>> {
    let mut vectors: Value = serde_json::from_slice(&fs::read(file)?)?;
    Ok(serde_json::from_value(vectors["vectors"].take())?)
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/envelope")
}

fn text<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    value[field].as_str().with_context(|| format!("no {field} in {value}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
