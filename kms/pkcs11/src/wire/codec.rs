//! Numbers, bytes and texts in a frame's body: little-endian, each length a u32 before its bytes.

use kms_core::epoch::{Installation, Mark};

/// A frame that its sender cannot have meant: the link is closed, for nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub struct Malformed;

/// Writing half.
pub(super) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_bytes(&mut self, value: &[u8]);
    fn put_raw(&mut self, value: &[u8]);
    fn put_mark(&mut self, mark: &Mark);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_bytes(&mut self, value: &[u8]) {
        // A length that does not fit is refused by the reader, whose limit is far lower.
        self.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.extend_from_slice(value);
    }

    fn put_raw(&mut self, value: &[u8]) {
        self.extend_from_slice(value);
    }

    fn put_mark(&mut self, mark: &Mark) {
        self.put_raw(&mark.installation.0);
        self.put_u64(mark.value);
        self.put_raw(&mark.nonce);
    }
}

/// Reading half: what is left of a body.
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// Reads one whole body; bytes that are left over make it malformed.
    pub(super) fn read<T>(
        bytes: &'a [u8],
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        let mut body = Self(bytes);
        let value = read(&mut body)?;
        if body.0.is_empty() { Ok(value) } else { Err(Malformed) }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| Malformed)
    }

    pub(super) fn mark(&mut self) -> Result<Mark, Malformed> {
        Ok(Mark { installation: Installation(self.array()?), value: self.u64()?, nonce: self.array()? })
    }

    /// A list of at most `len_max` entries; nothing is reserved ahead, so a lying length costs nothing.
    pub(super) fn list<T>(
        &mut self,
        len_max: u32,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let len = self.u32()?;
        if len > len_max {
            return Err(Malformed);
        }
        (0..len).map(|_| read(self)).collect()
    }
}

/// Where `entry` stands in a table that both ends have.
pub(super) fn index_of<T: PartialEq>(table: &[T], entry: &T) -> u8 {
    // Every entry stands in its table; 255 would be refused by the reader.
    table.iter().position(|known| known == entry).and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

/// What stands there.
pub(super) fn entry_of<T: Copy>(table: &[T], index: u8) -> Result<T, Malformed> {
    table.get(usize::from(index)).copied().ok_or(Malformed)
}
