//! Passwords and names from the operating system's generator.

use std::{fmt, io};

use rustix::rand::{GetRandomFlags, getrandom};

/// A password: letters and digits, so that it needs no quotes anywhere.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// 128 bits.
    pub(crate) fn draw() -> io::Result<Self> {
        Ok(Self(hexadecimal::<16>()?))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// `prefix` and a random suffix of 32 bits; a name that SQL takes without quotes.
pub(crate) fn name(prefix: &str) -> io::Result<String> {
    Ok(format!("{prefix}_{}", hexadecimal::<4>()?))
}

/// A number below `limit`, evenly enough for a port.
pub(crate) fn below(limit: u16) -> io::Result<u16> {
    Ok(u16::from_le_bytes(bytes()?) % limit)
}

fn hexadecimal<const N: usize>() -> io::Result<String> {
    Ok(bytes::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // At most 256 bytes are never returned short (getrandom(2)), but a signal may come first.
    let filled = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    debug_assert_eq!(filled, N);
    Ok(bytes)
}
