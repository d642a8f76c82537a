//! The header of an envelope: the salt and commitment of the payload, and the recipients, each with the data key wrapped.

use std::io::{self, Read};

use crate::wrapped_key::{DataKeyId, WrappedKey};

const MAGIC: &[u8; 4] = b"KMSE";
const FORMAT_VERSION: u8 = 1;
/// HKDF-SHA-256, AES-256-GCM in chunks.
pub(crate) const SUITE: u8 = 1;
/// Length in bytes of what stands before the recipients.
const FIXED_LEN: usize = 88;

/// What an envelope says of itself before its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Through which door it was made: what one door seals, no other opens.
    pub purpose: Purpose,
    /// The data key.
    pub data_key_id: DataKeyId,
    /// Random, of this envelope alone: so its payload key is its own, whatever the data key is used for besides.
    pub salt: [u8; 32],
    /// Derived with the payload key: only the one right data key gives it.
    pub commitment: [u8; 32],
    /// The data key, wrapped for each of them: 1 to [`Header::RECIPIENTS_MAX`]. Replaced by a rewrap.
    pub recipients: Vec<WrappedKey>,
}

/// A door of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Its own API.
    Native = 1,
    /// The transit API of Vault.
    Vault = 2,
    /// Kubernetes.
    Kubernetes = 3,
}

/// Why something is no envelope, or no wrapped key. Found before any key is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It does not begin as ours do, or its lengths do not fit.
    #[error("this is not an envelope or a wrapped key of this service, or it is cut")]
    Malformed,
    /// It is of a format, an algorithm or a door that this program does not know.
    #[error("this envelope or wrapped key is of a kind that this program does not know; use a newer one")]
    Unknown,
}

impl Header {
    /// Most recipients.
    pub const RECIPIENTS_MAX: usize = 8;
    /// Longest encoding in bytes.
    pub const LEN_MAX: usize = FIXED_LEN + Self::RECIPIENTS_MAX * (2 + WrappedKey::LEN_MAX);

    /// The encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        let recipients = u8::try_from(self.recipients.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[FORMAT_VERSION, SUITE, self.purpose as u8, recipients]);
        out.extend_from_slice(self.data_key_id.as_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.commitment);
        for recipient in &self.recipients {
            let recipient = recipient.to_bytes();
            out.extend_from_slice(&u16::try_from(recipient.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(&recipient);
        }
        out
    }

    /// Reads the header at the beginning of an envelope, and gives what is behind it.
    pub fn parse(envelope: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let mut rest = envelope;
        match Self::read(&mut rest) {
            Ok(header) => header.map(|header| (header, rest)),
            // Reading from memory fails at its end alone.
            Err(_) => Err(HeaderError::Malformed),
        }
    }

    /// Reads the header of an envelope, and no byte more. A reader that ends is one that is malformed; any other failure
    /// of the reader is passed on. Nothing is allocated before it is there.
    pub fn read(mut reader: impl Read) -> io::Result<Result<Self, HeaderError>> {
        let mut fixed = [0; FIXED_LEN];
        if !filled(&mut reader, &mut fixed)? {
            return Ok(Err(HeaderError::Malformed));
        }
        let (mut header, recipients) = match Self::parse_fixed(&fixed) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Err(error)),
        };
        for _ in 0..recipients {
            let mut len = [0; 2];
            let mut recipient = Vec::new();
            if filled(&mut reader, &mut len)? {
                let len = u64::from(u16::from_be_bytes(len)).min(WrappedKey::LEN_MAX as u64 + 1);
                (&mut reader).take(len).read_to_end(&mut recipient)?;
            }
            match WrappedKey::parse(&recipient) {
                Ok(recipient) => header.recipients.push(recipient),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(header.fits().map(|()| header))
    }

    fn parse_fixed(fixed: &[u8; FIXED_LEN]) -> Result<(Self, usize), HeaderError> {
        let mut reader = Reader::new(fixed);
        reader.magic(MAGIC, FORMAT_VERSION)?;
        if reader.u8()? != SUITE {
            return Err(HeaderError::Unknown);
        }
        let purpose = Purpose::from_byte(reader.u8()?)?;
        let recipients = usize::from(reader.u8()?);
        let header = Self {
            purpose,
            data_key_id: DataKeyId::from_bytes(reader.array()?),
            salt: reader.array()?,
            commitment: reader.array()?,
            recipients: Vec::new(),
        };
        Ok((header, recipients))
    }

    /// Whether it has as many recipients as it may, and each has the data key of the envelope, through the same door.
    pub(crate) fn fits(&self) -> Result<(), HeaderError> {
        let fits = |recipient: &WrappedKey| {
            recipient.header.data_key_id == self.data_key_id && recipient.header.purpose == self.purpose
        };
        let counted = (1..=Self::RECIPIENTS_MAX).contains(&self.recipients.len());
        if counted && self.recipients.iter().all(fits) { Ok(()) } else { Err(HeaderError::Malformed) }
    }
}

impl Purpose {
    pub(crate) fn from_byte(byte: u8) -> Result<Self, HeaderError> {
        match byte {
            1 => Ok(Self::Native),
            2 => Ok(Self::Vault),
            3 => Ok(Self::Kubernetes),
            _ => Err(HeaderError::Unknown),
        }
    }
}

/// Takes fixed parts off the front of bytes.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(HeaderError::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, HeaderError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn magic(&mut self, magic: &[u8; 4], version: u8) -> Result<(), HeaderError> {
        if self.array::<4>()? != *magic {
            return Err(HeaderError::Malformed);
        }
        if self.u8()? == version { Ok(()) } else { Err(HeaderError::Unknown) }
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Fills the buffer, or says that the reader ended before.
fn filled(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
