//! The bare token: processes that log in, find the service's own key by its label, and call C_Sign without a
//! pause. Nothing of ours lies in between but the cryptoki crate.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::{Attribute, ObjectClass},
    session::UserType,
    types::AuthPin,
};
use hdrhistogram::Histogram;

use crate::{
    load::Outcome,
    report::Row,
    service::{Algorithm, Bench},
};

/// The subcommand by which this program starts itself as one such process.
pub(crate) const SUBCOMMAND: &str = "bare-token";

/// SHA-256's DigestInfo (RFC 8017 §9.2, note 1), which CKM_RSA_PKCS wants in front of the digest.
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// Runs `processes` of them for `span` and adds their rates up.
pub(crate) fn measure(
    bench: &Bench,
    algorithm: Algorithm,
    processes: usize,
    span: Duration,
) -> anyhow::Result<Row> {
    let dir = bench.dir();
    let config = std::fs::read_to_string(dir.join("kms.toml"))?;
    let module = module_path(&config).context("kms.toml names no module")?;
    let mut children = Vec::new();
    for _ in 0..processes {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SUBCOMMAND, &module, algorithm.key(), &span.as_millis().to_string()])
            .arg(dir.join("pin"))
            .env("SOFTHSM2_CONF", dir.join("softhsm2.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // One after another: SoftHSM rewrites its token at C_Login. Each says when it is ready, then waits.
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().context("stdout")?, &mut ready)?;
        children.push(child);
    }
    for child in &mut children {
        // The end of its standard input is the starting shot.
        drop(child.stdin.take());
    }
    let mut total = Row::default();
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "a bare-token process ended with {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = text.split_whitespace().map(str::parse::<f64>);
        let mut next = || numbers.next().context("a number is missing")?.context("no number");
        total.per_second += next()?;
        total.p50_us = next()?;
        total.p99_us = next()?;
    }
    Ok(total)
}

/// One such process. Arguments: module, key, span in milliseconds, PIN file.
pub(crate) fn child(args: Vec<String>) -> anyhow::Result<()> {
    let [module, key, span_ms, pin_file] = args.as_slice() else { anyhow::bail!("four arguments") };
    let pkcs11 = Pkcs11::new(module)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_initialized_token()?.first().context("no token")?;
    let session = pkcs11.open_ro_session(slot)?;
    let pin = std::fs::read_to_string(pin_file)?;
    session.login(UserType::User, Some(&AuthPin::from(pin.trim_end().to_owned())))?;
    let label = format!("{key}/1");
    let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.into_bytes())];
    let handle = *session.find_objects(&template)?.first().context("the key is not in the token")?;
    let digest = [0x5a; 32];
    let (mechanism, input) = if key.contains("es256") {
        (Mechanism::Ecdsa, digest.to_vec())
    } else {
        (Mechanism::RsaPkcs, [&SHA256_DIGEST_INFO[..], &digest].concat())
    };
    print!("r");
    std::io::Write::flush(&mut std::io::stdout())?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let span = Duration::from_millis(span_ms.parse()?);
    let outcome = sign_for(span, || {
        session.sign(&mechanism, handle, &input)?;
        Ok(())
    })?;
    let row = Row::new(&outcome, 1, Duration::ZERO);
    println!(" {} {} {}", row.per_second, row.p50_us, row.p99_us);
    Ok(())
}

fn sign_for(span: Duration, mut sign: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Outcome> {
    let mut latencies_us = Histogram::<u64>::new(3)?;
    let began = Instant::now();
    while began.elapsed() < span {
        let called = Instant::now();
        sign()?;
        latencies_us.record(u64::try_from(called.elapsed().as_micros())?)?;
    }
    Ok(Outcome { calls: latencies_us.len(), elapsed: began.elapsed(), latencies_us })
}

/// The `module-path` of the `pkcs11:` URI in the config, percent-decoding aside: the paths have nothing to decode.
fn module_path(config: &str) -> Option<String> {
    let rest = config.split("module-path=").nth(1)?;
    Some(rest.split(['&', '"', '\'']).next()?.replace("%2F", "/").replace("%2f", "/"))
}
