//! How fast a stream is sealed and opened on one core, beside AES-256-GCM of the same library on the same chunks; and how
//! many calls a million small seals cost. Run it with `--release`, alone on the machine; it needs no server. With the
//! argument `memory` it seals and opens 10 GiB through a pipe instead, and tells how much memory the process ever held.

use std::{
    error::Error,
    hint::black_box,
    io::{Read, Write, sink},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_client::envelope::{
    EncryptionContext, EnvelopeContext, Envelopes, Generated, Kms, Policy, Primary, Purpose, SecretBytes,
    WrapHeader, WrappedKey,
};
use kms_envelope::{CHUNK_LEN, DataKey, DataKeyId, Header, Opener, SealHeader, Sealer, WrapAlgorithm};

/// Short enough for the processor's cache: the memory behind it is slower than AES-GCM, and not the SDK's.
const STREAM_LEN: usize = 8 << 20;
const STREAMS: usize = 128;
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
    for round in 1..=9 {
        let (bare_seal, bare_open) = bare(&plain[..CHUNK_LEN])?;
        let (seal, sealed) = sealed(&plain)?;
        let open = opened(&sealed)?;
        writeln!(
            report,
            "round {round}, MB/s: seal {seal:.0} of {bare_seal:.0} = {:.2}; open {open:.0} of {bare_open:.0} = {:.2}",
            seal / bare_seal,
            open / bare_open
        )?;
    }
    let kms = Local::default();
    let envelopes = Envelopes::new(kms, "keys/a", Policy::default());
    let begun = Instant::now();
    for row in 0..SMALL_SEALS {
        let context = EnvelopeContext {
            key: EncryptionContext::default(),
            local: EncryptionContext::new([("row".into(), row.to_string())])?,
        };
        black_box(envelopes.seal(&context, b"a field of a row").await?);
    }
    let rate = SMALL_SEALS as f64 / begun.elapsed().as_secs_f64();
    writeln!(report, "{SMALL_SEALS} small seals: {} calls, {rate:.0} seals/s", CALLS.load(Relaxed))?;
    Ok(())
}

/// AES-256-GCM in place, chunk by chunk: MB/s of sealing and of opening.
fn bare(plain: &[u8]) -> Result<(f64, f64), Box<dyn Error>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32])?);
    let chunks = STREAMS * STREAM_LEN / CHUNK_LEN;
    let mut chunk = plain.to_vec();
    let begun = Instant::now();
    let mut tag = None;
    for counter in 0..chunks {
        let nonce = Nonce::assume_unique_for_key((counter as u128).to_be_bytes()[4..].try_into()?);
        tag = Some(key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut chunk)?);
    }
    let seal = rate(begun);
    black_box(tag);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut sealed = plain.to_vec();
    key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)?;
    let mut out = vec![0; plain.len()];
    let (ciphertext, tag) = sealed.split_at(plain.len());
    let begun = Instant::now();
    for _ in 0..chunks {
        key.open_separate_gather(nonce(), Aad::empty(), ciphertext, tag, &mut out)?;
    }
    Ok((seal, rate(begun)))
}

/// MB/s of sealing streams, and one of them.
fn sealed(plain: &[u8]) -> Result<(f64, Vec<u8>), Box<dyn Error>> {
    // In memory, so that the disk is not measured; touched before, so that the kernel is not either.
    let mut target = vec![1; STREAM_LEN + STREAM_LEN / 1_000];
    let data_key = DataKey::from_secret(SecretBytes::new(vec![1; 32]))?;
    let begun = Instant::now();
    for _ in 0..STREAMS {
        target.clear();
        let random = |_: &mut [u8]| Ok(());
        let context = EnvelopeContext::default();
        let mut sealer = Sealer::new(target, &data_key, seal_header()?, &context, random)?;
        for _ in 0..STREAM_LEN / plain.len() {
            sealer.write_all(plain)?;
        }
        target = sealer.finish()?;
    }
    Ok((rate(begun), target))
}

/// Seals [`LONG_STREAM_LEN`] bytes in a thread of its own and opens them here: returns how many came out.
fn long_stream() -> Result<u64, Box<dyn Error>> {
    let (mut reader, writer) = std::io::pipe()?;
    let data_key = || DataKey::from_secret(SecretBytes::new(vec![1; 32]));
    let (seals, opens) = (data_key()?, data_key()?);
    let header = seal_header()?;
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
fn opened(sealed: &[u8]) -> Result<f64, Box<dyn Error>> {
    let data_key = DataKey::from_secret(SecretBytes::new(vec![1; 32]))?;
    let mut buffer = vec![0; CHUNK_LEN];
    let begun = Instant::now();
    for _ in 0..STREAMS {
        let (mut sealed, context) = (sealed, EnvelopeContext::default());
        let header = Header::read(&mut sealed)?;
        let mut opener = Opener::new(sealed, &header, &data_key, Purpose::Native, &context)?;
        loop {
            match opener.read(&mut buffer)? {
                0 => break,
                len => sink().write_all(black_box(&buffer[..len]))?,
            }
        }
    }
    Ok(rate(begun))
}

fn seal_header() -> Result<SealHeader, kms_client::envelope::Malformed> {
    Ok(SealHeader {
        recipients: vec![wrapped(&EncryptionContext::default())?],
        purpose: Purpose::Native,
        data_key_id: DataKeyId([1; 16]),
    })
}

fn rate(begun: Instant) -> f64 {
    (STREAMS * STREAM_LEN) as f64 / 1e6 / begun.elapsed().as_secs_f64()
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
