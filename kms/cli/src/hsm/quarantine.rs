//! `kms hsm quarantine`: an object in the token is put on record as one to be left alone.

use std::str::FromStr;

use clap::Args;
use kms_client::v1;

use crate::{connection::Connection, failure::Failure, output::Format, view};

/// Put an orphan or foreign object on record: it raises no alarm any more, and is never taken for a key. Asks the
/// running server. The token is not touched: deleting is done by hand, with the vendor's tool
#[derive(Debug, Args)]
pub(super) struct Quarantine {
    /// CKA_ID of the object in hexadecimal digits, as `kms hsm inventory` shows it
    cka_id: CkaId,
    /// Why it is left alone, for whoever finds it later
    #[arg(long, value_name = "TEXT")]
    note: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CkaId(Vec<u8>);

impl Quarantine {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let client = self.connection.client().await?;
        let request = v1::QuarantineObjectRequest { cka_id: self.cka_id.0, note: self.note };
        format.print_one(&view::HsmObject::from(client.quarantine_object(request).await?))
    }
}

impl FromStr for CkaId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |[high, low]: &[u8; 2]| {
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            u8::try_from(digit(high)? * 16 + digit(low)?).ok()
        };
        let bytes = digits.iter().map(byte).collect::<Option<Vec<u8>>>();
        bytes
            .filter(|bytes| !bytes.is_empty() && rest.is_empty())
            .map(Self)
            .ok_or("a CKA_ID is written as pairs of hexadecimal digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_hexadecimal_is_refused() {
        for bad in ["", "a", "abc", "0x01", "zz", "+1", "a b", "é"] {
            assert!(bad.parse::<CkaId>().is_err(), "{bad:?}");
        }
        assert_eq!("00fFa5".parse(), Ok(CkaId(vec![0x00, 0xff, 0xa5])));
    }
}
