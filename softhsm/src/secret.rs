//! PINs and label suffixes from the operating system's generator.

use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::Error;

/// Five bits a letter, none of them easily confused with another (RFC 4648 §6, in lower case).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A PIN of 24 letters and digits: 120 bits.
pub(crate) fn pin() -> Result<String, Error> {
    letters::<24>()
}

/// `prefix` and a random suffix of 50 bits. A label has at most 32 bytes (CK_TOKEN_INFO).
pub(crate) fn label(prefix: &str) -> Result<String, Error> {
    Ok(format!("{prefix}-{}", letters::<10>()?))
}

fn letters<const N: usize>() -> Result<String, Error> {
    let mut bytes = [0; N];
    // At most 256 bytes are never returned short (getrandom(2)), but a signal may come first.
    let filled = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))
        .map_err(|errno| Error::io(Path::new("/dev/urandom"))(errno.into()))?;
    debug_assert_eq!(filled, N);
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}
