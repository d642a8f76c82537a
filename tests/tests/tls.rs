//! Which TLS the server speaks, read off the wire: hellos made by hand (RFC 5246 §7.4.1.2, RFC 8446 §4.1.2), and what
//! comes back. No TLS library stands between.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use kms_tests::{Authority, PATIENCE, Plan};

const TLS10: u16 = 0x0301;
const TLS11: u16 = 0x0302;
const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE_REQUEST: u8 = 13;
const SERVER_HELLO_DONE: u8 = 14;

/// AES-256-GCM, AES-128-GCM, ChaCha20-Poly1305.
const WITH_TLS13: [u16; 3] = [0x1302, 0x1301, 0x1303];
/// The same after ECDHE, signed with ECDSA.
const WITH_ECDSA: [u16; 3] = [0xc02c, 0xc02b, 0xcca9];
/// The same, signed with RSA.
const WITH_RSA: [u16; 3] = [0xc030, 0xc02f, 0xcca8];
/// What must not be taken, by name, so that one sees which it was.
const REFUSED: [(&str, u16); 30] = [
    ("NULL_WITH_NULL_NULL", 0x0000),
    ("RSA_WITH_NULL_SHA256", 0x003b),
    ("RSA_EXPORT_WITH_RC4_40_MD5", 0x0003),
    ("RSA_WITH_RC4_128_MD5", 0x0004),
    ("RSA_WITH_RC4_128_SHA", 0x0005),
    ("ECDHE_ECDSA_WITH_RC4_128_SHA", 0xc007),
    ("ECDHE_RSA_WITH_RC4_128_SHA", 0xc011),
    ("RSA_WITH_DES_CBC_SHA", 0x0009),
    ("RSA_WITH_3DES_EDE_CBC_SHA", 0x000a),
    ("DHE_RSA_WITH_3DES_EDE_CBC_SHA", 0x0016),
    ("ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA", 0xc008),
    ("ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", 0xc012),
    ("RSA_WITH_AES_128_CBC_SHA", 0x002f),
    ("RSA_WITH_AES_256_CBC_SHA256", 0x003d),
    ("RSA_WITH_AES_128_GCM_SHA256", 0x009c),
    ("RSA_WITH_AES_256_GCM_SHA384", 0x009d),
    ("DHE_RSA_WITH_AES_128_CBC_SHA", 0x0033),
    ("DHE_RSA_WITH_AES_256_GCM_SHA384", 0x009f),
    ("DHE_RSA_WITH_CHACHA20_POLY1305_SHA256", 0xccaa),
    ("DH_anon_WITH_AES_128_CBC_SHA", 0x0034),
    ("ECDH_anon_WITH_AES_128_CBC_SHA", 0xc018),
    ("ECDHE_ECDSA_WITH_AES_128_CBC_SHA", 0xc009),
    ("ECDHE_ECDSA_WITH_AES_256_CBC_SHA384", 0xc024),
    ("ECDHE_RSA_WITH_AES_128_CBC_SHA", 0xc013),
    ("ECDHE_RSA_WITH_AES_256_CBC_SHA384", 0xc028),
    ("ECDHE_ECDSA_WITH_AES_128_CCM", 0xc0ac),
    ("ECDHE_ECDSA_WITH_AES_128_CCM_8", 0xc0ae),
    ("PSK_WITH_AES_128_GCM_SHA256", 0x00a8),
    ("AES_128_CCM_SHA256", 0x1304),
    ("AES_128_CCM_8_SHA256", 0x1305),
];
/// Ids in one hello: they fit into one record.
const SUITES_PER_HELLO: usize = 8_000;

/// What a server answers to a hello.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A ServerHello with this version and suite.
    Hello(u16, u16),
    /// An alert, and nothing before it.
    Alert,
}

/// A ClientHello in a record. `version` is the highest that it offers.
fn client_hello(version: u16, suites: &[u16]) -> Vec<u8> {
    let mut extensions = [
        // Groups: X25519, P-256, P-384; uncompressed points; ECDSA, PSS and PKCS#1, with SHA-1 too.
        extension(10, &list(&[0x001d, 0x0017, 0x0018])),
        extension(11, &[1, 0]),
        extension(13, &list(&[0x0403, 0x0503, 0x0804, 0x0805, 0x0401, 0x0501, 0x0203, 0x0201])),
    ]
    .concat();
    if version == TLS13 {
        extensions.extend(extension(43, &[&[2][..], &TLS13.to_be_bytes()].concat()));
        // X25519's base point: any point is a public key.
        let share = [&[0x00, 0x1d, 0, 32, 9][..], &[0; 31]].concat();
        extensions.extend(extension(51, &vector(&share)));
    }
    let body = [
        &version.min(TLS12).to_be_bytes()[..],
        &[7; 32],
        // No session; no compression.
        &[0],
        &list(suites),
        &[1, 0],
        &vector(&extensions),
    ]
    .concat();
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let message = [&[1][..], &len[1..], &body].concat();
    [&[HANDSHAKE][..], &TLS10.to_be_bytes(), &vector(&message)].concat()
}

fn extension(id: u16, content: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &vector(content)].concat()
}

/// Content behind its length in two bytes.
fn vector(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes()[..], content].concat()
}

fn list(numbers: &[u16]) -> Vec<u8> {
    vector(&numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>())
}

fn send(addr: SocketAddr, hello: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(hello)?;
    Ok(stream)
}

/// The kind and content of the next record.
fn record(stream: &mut TcpStream) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).context("the server hung up without a word")?;
    let mut content = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
    stream.read_exact(&mut content)?;
    Ok((head[0], content))
}

fn answer(addr: SocketAddr, version: u16, suites: &[u16]) -> anyhow::Result<Answer> {
    let (kind, content) = record(&mut send(addr, &client_hello(version, suites))?)?;
    match (kind, content.first()) {
        (ALERT, _) => Ok(Answer::Alert),
        (HANDSHAKE, Some(&SERVER_HELLO)) => server_hello(&content).context("a ServerHello that is cut off"),
        _ => bail!("neither a ServerHello nor an alert: {kind} {content:x?}"),
    }
}

fn server_hello(message: &[u8]) -> Option<Answer> {
    let number = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    // Behind the head of the message, the version and the random bytes: a session, the suite, the compression.
    let version = number(message.get(4..)?)?;
    let after_session = message.get(38 + 1 + usize::from(*message.get(38)?)..)?;
    let suite = number(after_session)?;
    let mut extensions = after_session.get(5..).unwrap_or_default();
    while let (Some(id), Some(len)) = (number(extensions), extensions.get(2..).and_then(number)) {
        let content = extensions.get(4..4 + usize::from(len))?;
        if id == 43 {
            return Some(Answer::Hello(number(content)?, suite));
        }
        extensions = &extensions[4 + usize::from(len)..];
    }
    Some(Answer::Hello(version, suite))
}

/// The kinds of the messages with which a server of TLS 1.2 answers, up to the last.
fn first_flight(addr: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let mut stream = send(addr, &client_hello(TLS12, &WITH_ECDSA))?;
    let (mut kinds, mut bytes) = (Vec::new(), Vec::new());
    while kinds.last() != Some(&SERVER_HELLO_DONE) {
        let (kind, content) = record(&mut stream)?;
        ensure!(kind == HANDSHAKE, "not a handshake: {kind} {content:x?}");
        bytes.extend(content);
        while let Some(&[kind, a, b, c]) = bytes.first_chunk::<4>() {
            let end = 4 + usize::try_from(u32::from_be_bytes([0, a, b, c]))?;
            if bytes.len() < end {
                break;
            }
            kinds.push(kind);
            bytes.drain(..end);
        }
    }
    Ok(kinds)
}

fn addr(url: &str) -> anyhow::Result<SocketAddr> {
    Ok(url.split_once("://").context("a URL")?.1.parse()?)
}

/// A second certificate, whose key is of RSA.
fn make_rsa_certificate(dir: &Path) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", "/CN=kms test"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-out"])
        .arg(dir.join("rsa.crt"))
        .arg("-keyout")
        .arg(dir.join("rsa.key"))
        .output()
        .context("openssl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_speaks_tls_1_2_and_1_3_with_these_suites_and_no_others() -> anyhow::Result<()> {
    let mut plan = Plan::new()?;
    make_rsa_certificate(plan.dir())?;
    plan.more.push(("http", "tls_cert_file = 'rsa.crt'\ntls_key_file = 'rsa.key'".into()));
    plan.bootstrap().await?;
    let server = plan.start().await?;
    for (addr, with_tls12) in [(addr(&server.addr)?, WITH_ECDSA), (addr(&server.http_addr)?, WITH_RSA)] {
        let known: BTreeSet<u16> = WITH_TLS13.into_iter().chain(WITH_ECDSA).chain(WITH_RSA).collect();
        for suite in &known {
            for version in [TLS10, TLS11, TLS12, TLS13] {
                let speaks = match version {
                    TLS12 => with_tls12.contains(suite),
                    TLS13 => WITH_TLS13.contains(suite),
                    _ => false,
                };
                let expected = if speaks { Answer::Hello(version, *suite) } else { Answer::Alert };
                let answer = answer(addr, version, &[*suite])?;
                ensure!(answer == expected, "{addr} {suite:04x} {version:04x}: {answer:x?}");
            }
        }
        for version in [TLS10, TLS11, TLS12, TLS13] {
            for (name, suite) in REFUSED {
                ensure!(!known.contains(&suite), "{name}");
                let answer = answer(addr, version, &[suite])?;
                ensure!(answer == Answer::Alert, "{addr} takes {name} with {version:04x}: {answer:x?}");
            }
            // And every id that there could be beside those.
            let others: Vec<u16> = (0..=u16::MAX).filter(|suite| !known.contains(suite)).collect();
            for some in others.chunks(SUITES_PER_HELLO) {
                let answer = answer(addr, version, some)?;
                ensure!(answer == Answer::Alert, "{addr} takes one more with {version:04x}: {answer:x?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_asked_for_only_when_somebody_may_vouch_for_it() -> anyhow::Result<()> {
    let plan = Plan::new()?;
    plan.bootstrap().await?;
    let without = plan.start().await?;
    let kinds = first_flight(addr(&without.addr)?)?;
    ensure!(!kinds.contains(&CERTIFICATE_REQUEST), "{kinds:?}");

    let mut plan = Plan::new()?;
    fs::write(plan.dir().join("ca.pem"), Authority::new("callers")?.pem()?)?;
    let section = "[[authn.client_ca]]\nname = 'callers'\nca_file = 'ca.pem'\ndns = true";
    plan.more.push(("authn", section.into()));
    plan.bootstrap().await?;
    let with = plan.start().await?;
    let kinds = first_flight(addr(&with.addr)?)?;
    ensure!(kinds.contains(&CERTIFICATE_REQUEST), "{kinds:?}");
    Ok(())
}
