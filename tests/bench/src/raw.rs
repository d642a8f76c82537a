//! The bare token: processes that log in, find the service's own key by its label, and call C_Sign, C_Decrypt or
//! C_Encrypt without a pause. Nothing of ours lies in between but the cryptoki crate.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::{AuthPin, Ulong},
};
use hdrhistogram::Histogram;
use rustix::process::getpid;

use crate::{
    cpu,
    load::Outcome,
    report::Row,
    service::{Algorithm, Bench},
    wraps,
};

/// The subcommand by which this program starts itself as one such process.
pub(crate) const SUBCOMMAND: &str = "bare-token";

/// SHA-256's DigestInfo (RFC 8017 §9.2, note 1), which CKM_RSA_PKCS wants in front of the digest.
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// Bytes of a data key, of a GCM IV and tag, and of what a wrap is bound to (docs/reference/envelope-format.md).
const DATA_KEY_LEN: usize = 32;
const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;
const AAD_LEN: usize = 88;

/// What is asked of the token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bare {
    /// A signature.
    Sign(Algorithm),
    /// What an unwrap asks: C_Decrypt of a data key.
    Decrypt,
    /// C_Encrypt of a data key.
    Encrypt,
    /// What a wrap asks: C_GenerateRandom for the IV, C_Encrypt, C_Decrypt of what came out, and C_Decrypt of the known
    /// answer.
    Wrap,
}

impl Bare {
    const ALL: [Self; 5] = [
        Self::Sign(Algorithm::Es256),
        Self::Sign(Algorithm::Rs256),
        Self::Decrypt,
        Self::Encrypt,
        Self::Wrap,
    ];

    /// Names it to the process that does it.
    fn name(self) -> &'static str {
        match self {
            Self::Sign(algorithm) => algorithm.key(),
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
            Self::Wrap => "wrap",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Sign(algorithm) => algorithm.key(),
            Self::Decrypt | Self::Encrypt | Self::Wrap => wraps::KEY,
        }
    }

    fn class(self) -> ObjectClass {
        match self {
            Self::Sign(_) => ObjectClass::PRIVATE_KEY,
            Self::Decrypt | Self::Encrypt | Self::Wrap => ObjectClass::SECRET_KEY,
        }
    }
}

/// Runs `processes` of them for `span` and adds their rates up.
pub(crate) fn measure(bench: &Bench, bare: Bare, processes: usize, span: Duration) -> anyhow::Result<Row> {
    let dir = bench.dir();
    let config = std::fs::read_to_string(dir.join("kms.toml"))?;
    let module = module_path(&config).context("kms.toml names no module")?;
    let mut children = Vec::new();
    for _ in 0..processes {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SUBCOMMAND, &module, bare.name(), &span.as_millis().to_string()])
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
        total.cpu_us = next()?;
    }
    Ok(total)
}

/// One such process. Arguments: module, what to do, span in milliseconds, PIN file.
pub(crate) fn child(args: Vec<String>) -> anyhow::Result<()> {
    let [module, name, span_ms, pin_file] = args.as_slice() else { anyhow::bail!("four arguments") };
    let bare = Bare::ALL.into_iter().find(|bare| bare.name() == name).context("nothing to do")?;
    let pkcs11 = Pkcs11::new(module)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_initialized_token()?.first().context("no token")?;
    let session = pkcs11.open_ro_session(slot)?;
    let pin = std::fs::read_to_string(pin_file)?;
    session.login(UserType::User, Some(&AuthPin::from(pin.trim_end().to_owned())))?;
    let label = format!("{}/1", bare.key());
    let template = [Attribute::Class(bare.class()), Attribute::Label(label.into_bytes())];
    let key = *session.find_objects(&template)?.first().context("the key is not in the token")?;
    let mut act = action(bare, &session, key)?;
    print!("r");
    std::io::Write::flush(&mut std::io::stdout())?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let span = Duration::from_millis(span_ms.parse()?);
    let before = cpu::used(&[getpid()]);
    let outcome = act_for(span, &mut *act)?;
    let row = Row::new(&outcome, 1, cpu::used(&[getpid()]) - before);
    println!(" {} {} {} {}", row.per_second, row.p50_us, row.p99_us, row.cpu_us);
    Ok(())
}

type Act<'a> = Box<dyn FnMut() -> anyhow::Result<()> + 'a>;

fn action<'a>(bare: Bare, session: &'a Session, key: ObjectHandle) -> anyhow::Result<Act<'a>> {
    let digest = [0x5a; 32];
    let sign = |mechanism: Mechanism<'static>, input: Vec<u8>| -> Act<'a> {
        Box::new(move || {
            session.sign(&mechanism, key, &input)?;
            Ok(())
        })
    };
    let mut counter = 0_u64;
    let mut encrypt = move || {
        counter += 1;
        let mut iv = [0; IV_LEN];
        iv[..8].copy_from_slice(&counter.to_le_bytes());
        let sealed = session.encrypt(&gcm(&mut iv.clone())?, key, &[1; DATA_KEY_LEN])?;
        anyhow::Ok((iv, sealed))
    };
    let decrypt = move |(mut iv, sealed): ([u8; IV_LEN], &[u8])| {
        ensure!(session.decrypt(&gcm(&mut iv)?, key, sealed)?.len() == DATA_KEY_LEN, "another length");
        Ok(())
    };
    Ok(match bare {
        Bare::Sign(Algorithm::Es256) => sign(Mechanism::Ecdsa, digest.to_vec()),
        Bare::Sign(Algorithm::Rs256) => sign(Mechanism::RsaPkcs, [&SHA256_DIGEST_INFO[..], &digest].concat()),
        Bare::Encrypt => Box::new(move || encrypt().map(drop)),
        Bare::Decrypt => {
            let (iv, sealed) = encrypt()?;
            Box::new(move || decrypt((iv, &sealed)))
        }
        Bare::Wrap => {
            let (known_iv, known) = encrypt()?;
            Box::new(move || {
                session.generate_random_vec(IV_LEN as u32)?;
                let (iv, sealed) = encrypt()?;
                decrypt((iv, &sealed))?;
                decrypt((known_iv, &known))
            })
        }
    })
}

fn gcm(iv: &mut [u8; IV_LEN]) -> anyhow::Result<Mechanism<'_>> {
    Ok(Mechanism::AesGcm(GcmParams::new(iv, &[3; AAD_LEN], Ulong::new(8 * TAG_LEN as u64))?))
}

fn act_for(span: Duration, act: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<Outcome> {
    let mut latencies_us = Histogram::<u64>::new(3)?;
    let began = Instant::now();
    while began.elapsed() < span {
        let called = Instant::now();
        act()?;
        latencies_us.record(u64::try_from(called.elapsed().as_micros())?)?;
    }
    Ok(Outcome { calls: latencies_us.len(), elapsed: began.elapsed(), latencies_us })
}

/// The `module-path` of the `pkcs11:` URI in the config, percent-decoding aside: the paths have nothing to decode.
fn module_path(config: &str) -> Option<String> {
    let rest = config.split("module-path=").nth(1)?;
    Some(rest.split(['&', '"', '\'']).next()?.replace("%2F", "/").replace("%2f", "/"))
}
