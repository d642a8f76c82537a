//! The header of an envelope: everything before the payload. It can be read from a stream without knowing any key, and
//! says whom to ask for the data key.
//!
//! All of it but the recipients goes into the derivation of the payload's key ([`crate::payload`]). The recipients do
//! not, because a rewrap replaces them; each is bound by its own wrap to the data-key id and the purpose that stand
//! here.

use std::io::{self, Read, Write};

use crate::{
    DataKeyId, Purpose, WrappedKey,
    error::{Malformed, OpenError, RecipientsError},
};

const MAGIC: &[u8; 4] = b"KMSE";
/// The version of the format.
pub(crate) const FORMAT_VERSION: u8 = 1;
/// HKDF-SHA-256, then AES-256-GCM in chunks of 65,536 bytes.
pub(crate) const SUITE: u8 = 1;

/// What stands before the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub(crate) purpose: Purpose,
    pub(crate) data_key_id: DataKeyId,
    pub(crate) salt: [u8; 32],
    pub(crate) commitment: [u8; 32],
    recipients: Vec<WrappedKey>,
}

impl Header {
    /// Most recipients.
    pub const RECIPIENTS_MAX: usize = 8;
    /// Longest encoding in bytes.
    pub const LEN_MAX: usize = 88 + Self::RECIPIENTS_MAX * (2 + WrappedKey::LEN_MAX);

    pub(crate) fn new(
        purpose: Purpose,
        data_key_id: DataKeyId,
        salt: [u8; 32],
        commitment: [u8; 32],
        recipients: Vec<WrappedKey>,
    ) -> Result<Self, RecipientsError> {
        if !(1..=Self::RECIPIENTS_MAX).contains(&recipients.len()) {
            return Err(RecipientsError::Count);
        }
        for recipient in recipients.iter().map(WrappedKey::header) {
            if recipient.data_key_id != data_key_id {
                return Err(RecipientsError::DataKeyId);
            }
            if recipient.purpose != purpose {
                return Err(RecipientsError::Purpose);
            }
            if recipient.context_digest != recipients[0].header().context_digest {
                return Err(RecipientsError::Context);
            }
        }
        Ok(Self { purpose, data_key_id, salt, commitment, recipients })
    }

    /// For which door it was sealed.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Which data key opens it.
    pub fn data_key_id(&self) -> DataKeyId {
        self.data_key_id
    }

    /// The data key, wrapped once for each recipient: 1 to [`Header::RECIPIENTS_MAX`], all under one key context.
    pub fn recipients(&self) -> &[WrappedKey] {
        &self.recipients
    }

    /// The digest of the key context, which all recipients have.
    pub fn context_digest(&self) -> &[u8; 32] {
        &self.recipients[0].header().context_digest
    }

    /// The same payload for other recipients: the same data key under other versions, or other keys.
    pub fn with_recipients(&self, recipients: Vec<WrappedKey>) -> Result<Self, RecipientsError> {
        let header = Self::new(self.purpose, self.data_key_id, self.salt, self.commitment, recipients)?;
        if header.context_digest() != self.context_digest() {
            return Err(RecipientsError::Context);
        }
        Ok(header)
    }

    /// Reads up to the payload and not a byte further. At most [`WrappedKey::LEN_MAX`] bytes are allocated ahead of
    /// what was read.
    pub fn read(mut from: impl Read) -> Result<Self, OpenError> {
        if &take::<4>(&mut from)? != MAGIC {
            return Err(Malformed::NotOurs("envelope").into());
        }
        let [version, suite, purpose, count] = take(&mut from)?;
        if version != FORMAT_VERSION {
            return Err(Malformed::Unknown { what: "format version", found: version }.into());
        }
        if suite != SUITE {
            return Err(Malformed::Unknown { what: "suite", found: suite }.into());
        }
        let purpose = Purpose::parse(purpose)?;
        if !(1..=Self::RECIPIENTS_MAX).contains(&usize::from(count)) {
            return Err(Malformed::Broken("the envelope does not have 1 to 8 recipients").into());
        }
        let data_key_id = DataKeyId(take(&mut from)?);
        let salt = take(&mut from)?;
        let commitment = take(&mut from)?;
        let mut recipients = Vec::new();
        for _ in 0..count {
            let len = usize::from(u16::from_be_bytes(take(&mut from)?));
            if len > WrappedKey::LEN_MAX {
                return Err(Malformed::Broken("a recipient is longer than any wrapped key").into());
            }
            let mut bytes = vec![0; len];
            fill(&mut from, &mut bytes)?;
            recipients.push(WrappedKey::parse(&bytes)?);
        }
        Self::new(purpose, data_key_id, salt, commitment, recipients).map_err(|_| {
            Malformed::Broken("the recipients of the envelope are those of another one, or of several").into()
        })
    }

    /// Writes it as it is stored: what [`Header::read`] reads.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.to_bytes())
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        // At most RECIPIENTS_MAX, as `new` made sure.
        let count = self.recipients.len() as u8;
        let fixed = [FORMAT_VERSION, SUITE, self.purpose.to_byte(), count];
        let mut bytes = [&MAGIC[..], &fixed, &self.data_key_id.0, &self.salt, &self.commitment].concat();
        for recipient in &self.recipients {
            let recipient = recipient.to_bytes();
            // At most WrappedKey::LEN_MAX.
            bytes.extend((recipient.len() as u16).to_be_bytes());
            bytes.extend(recipient);
        }
        bytes
    }
}

fn take<const N: usize>(from: &mut impl Read) -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    fill(from, &mut bytes)?;
    Ok(bytes)
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), OpenError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Malformed::Cut("header of the envelope").into(),
        _ => error.into(),
    })
}
