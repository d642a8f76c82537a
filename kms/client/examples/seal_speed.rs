//! How fast a stream is sealed and opened on one core, beside AES-256-GCM of the same library on the same chunks; and how
//! many calls a million small seals cost. Run it with `--release`; it needs no server. What is measured is the
//! time that the thread had a core, so that other processes disturb it less. With the argument `memory` it seals and opens
//! 10 GiB through a pipe instead, and tells how much memory the process ever held.

use std::{
    error::Error,
    hint::black_box,
    io::{Read, Write, sink},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_client::envelope::{
    EncryptionContext, EnvelopeContext, Envelopes, Generated, Kms, Policy, Primary, Purpose, SecretBytes,
    WrapHeader, WrappedKey,
};
use kms_envelope::{CHUNK_LEN, DataKey, DataKeyId, Header, Opener, SealHeader, Sealer, WrapAlgorithm};
use rustix::time::{ClockId, clock_gettime};

const STREAM_LEN: usize = 256 << 20;
const SMALL_SEALS: u64 = 1_000_000;
const LONG_STREAM_LEN: u64 = 10 << 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut report = std::io::stdout();
    if std::env::args().nth(1).as_deref() == Some("memory") {
        let opened = long_stream()?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let most = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
        return Ok(writeln!(report, "sealed and opened {opened} bytes; {most}")?);
    }
    let plain = vec![7_u8; 4 * CHUNK_LEN];
    let stream = sealed(&plain, Vec::with_capacity(STREAM_LEN + STREAM_LEN / 1_000))?.1;
    let bare = bare_stream(&plain)?;
    for round in 1..=10 {
        let (bare_seal, bare_open) = (bare_seal(&plain)?, bare_open(&bare)?);
        let (seal, open) = (sealed(&plain, sink())?.0, opened(&stream)?);
        writeln!(
            report,
            "round {round}, MB/s: seal {seal:.0} of {bare_seal:.0} = {:.2}; open {open:.0} of {bare_open:.0} = {:.2}",
            seal / bare_seal,
            open / bare_open
        )?;
    }
    let kms = Local::default();
    let envelopes = Envelopes::new(kms, "keys/a", Policy::default());
    let begun = core_seconds();
    for row in 0..SMALL_SEALS {
        let context = EnvelopeContext {
            key: EncryptionContext::default(),
            local: EncryptionContext::new([("row".into(), row.to_string())])?,
        };
        black_box(envelopes.seal(&context, b"a field of a row").await?);
    }
    let rate = SMALL_SEALS as f64 / (core_seconds() - begun);
    writeln!(report, "{SMALL_SEALS} small seals: {} calls, {rate:.0} seals/s", CALLS.load(Relaxed))?;
    Ok(())
}

/// MB/s of AES-256-GCM, chunk by chunk, in place.
fn bare_seal(plain: &[u8]) -> Result<f64, Box<dyn Error>> {
    let key = bare_key()?;
    let mut buffer = plain.to_vec();
    let begun = core_seconds();
    for _ in 0..STREAM_LEN / plain.len() {
        for chunk in buffer.chunks_mut(CHUNK_LEN) {
            let _tag = black_box(key.seal_in_place_separate_tag(nonce(), Aad::empty(), chunk)?);
        }
    }
    Ok(rate(begun))
}

/// As many bare chunks, each with its tag.
fn bare_stream(plain: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut stream = Vec::with_capacity(STREAM_LEN + STREAM_LEN / 1_000);
    for _ in 0..STREAM_LEN / CHUNK_LEN {
        let start = stream.len();
        stream.extend(&plain[..CHUNK_LEN]);
        let tag = bare_key()?.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut stream[start..])?;
        stream.extend(tag.as_ref());
    }
    Ok(stream)
}

/// MB/s of reading them, one after the other as from a file, and opening them in place.
fn bare_open(mut stream: &[u8]) -> Result<f64, Box<dyn Error>> {
    let key = bare_key()?;
    let mut chunk = vec![0; CHUNK_LEN + 16];
    let begun = core_seconds();
    while !stream.is_empty() {
        stream.read_exact(&mut chunk)?;
        black_box(key.open_in_place(nonce(), Aad::empty(), &mut chunk)?);
    }
    Ok(rate(begun))
}

fn bare_key() -> Result<LessSafeKey, Box<dyn Error>> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32])?))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// MB/s of sealing a stream into `target`, and that.
fn sealed<W: Write>(plain: &[u8], target: W) -> Result<(f64, W), Box<dyn Error>> {
    let data_key = DataKey::from_secret(SecretBytes::new(vec![1; 32]))?;
    let header = SealHeader {
        recipients: vec![wrapped(&EncryptionContext::default())?],
        purpose: Purpose::Native,
        data_key_id: DataKeyId([1; 16]),
    };
    let random = |_: &mut [u8]| Ok(());
    let begun = core_seconds();
    let mut sealer = Sealer::new(target, &data_key, header, &EnvelopeContext::default(), random)?;
    for _ in 0..STREAM_LEN / plain.len() {
        sealer.write_all(plain)?;
    }
    let target = sealer.finish()?;
    Ok((rate(begun), target))
}

/// Seals [`LONG_STREAM_LEN`] bytes in a thread of its own and opens them here: returns how many came out.
fn long_stream() -> Result<u64, Box<dyn Error>> {
    let (mut reader, writer) = std::io::pipe()?;
    let data_key = || DataKey::from_secret(SecretBytes::new(vec![1; 32]));
    let (seals, opens) = (data_key()?, data_key()?);
    let header = SealHeader {
        recipients: vec![wrapped(&EncryptionContext::default())?],
        purpose: Purpose::Native,
        data_key_id: DataKeyId([1; 16]),
    };
    let sealing = std::thread::spawn(move || {
        let random = |_: &mut [u8]| Ok(());
        let mut sealer = Sealer::new(writer, &seals, header, &EnvelopeContext::default(), random)?;
        std::io::copy(&mut std::io::repeat(7).take(LONG_STREAM_LEN), &mut sealer)?;
        sealer.finish().map(drop)
    });
    let header = Header::read(&mut reader)?;
    let mut opener = Opener::new(reader, &header, &opens, Purpose::Native, &EnvelopeContext::default())?;
    let opened = std::io::copy(&mut opener, &mut sink())?;
    sealing.join().map_err(|_| "the thread that seals panicked")??;
    if opened != LONG_STREAM_LEN {
        return Err(format!("{opened} of {LONG_STREAM_LEN} bytes came out").into());
    }
    Ok(opened)
}

/// MB/s of opening it.
fn opened(mut sealed: &[u8]) -> Result<f64, Box<dyn Error>> {
    let data_key = DataKey::from_secret(SecretBytes::new(vec![1; 32]))?;
    let mut buffer = vec![0; CHUNK_LEN];
    let begun = core_seconds();
    let header = Header::read(&mut sealed)?;
    let mut opener = Opener::new(sealed, &header, &data_key, Purpose::Native, &EnvelopeContext::default())?;
    loop {
        match opener.read(&mut buffer)? {
            0 => return Ok(rate(begun)),
            len => sink().write_all(black_box(&buffer[..len]))?,
        }
    }
}

/// MB/s of the stream since `begun`.
fn rate(begun: f64) -> f64 {
    STREAM_LEN as f64 / 1e6 / (core_seconds() - begun)
}

/// How long this thread has had a core, in seconds.
fn core_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

static CALLS: AtomicU64 = AtomicU64::new(0);

/// Data keys of no worth.
#[derive(Default)]
struct Local(AtomicU32);

impl Kms for Local {
    async fn generate(&self, _: &str, context: &EncryptionContext) -> Result<Generated, kms_client::Error> {
        CALLS.fetch_add(1, Relaxed);
        let plaintext = self.0.fetch_add(1, Relaxed).to_be_bytes().repeat(8);
        let wrapped = wrapped(context).map_err(|error| tonic::Status::internal(error.to_string()))?;
        Ok(Generated { plaintext: SecretBytes::new(plaintext), wrapped_key: wrapped.to_bytes() })
    }

    async fn unwrap_key(
        &self,
        _: &str,
        _: &[u8],
        _: &EncryptionContext,
    ) -> Result<SecretBytes, kms_client::Error> {
        Err(tonic::Status::unimplemented("nothing is opened").into())
    }

    async fn rewrap_keys(
        &self,
        _: &str,
        _: Vec<Vec<u8>>,
    ) -> Result<Vec<Result<Vec<u8>, kms_client::Error>>, kms_client::Error> {
        Err(tonic::Status::unimplemented("nothing is moved").into())
    }

    async fn key_uid(&self, _: &str) -> Result<[u8; 16], kms_client::Error> {
        Err(tonic::Status::unimplemented("nothing is opened").into())
    }

    async fn primary(&self, _: &str) -> Result<Primary, kms_client::Error> {
        Err(tonic::Status::unimplemented("nothing is moved").into())
    }
}

fn wrapped(context: &EncryptionContext) -> Result<WrappedKey, kms_client::envelope::Malformed> {
    let header = WrapHeader {
        algorithm: WrapAlgorithm::A256GcmKw,
        purpose: Purpose::Native,
        key_uid: [1; 16],
        key_version: std::num::NonZeroU32::MIN,
        data_key_id: DataKeyId([1; 16]),
        context_digest: context.digest(),
    };
    WrappedKey::new(header, vec![0; 60])
}
