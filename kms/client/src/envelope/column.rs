//! Fields of a database. Each is bound to its table, column and row, so that a ciphertext that is moved to another place
//! does not open there.

use std::fmt::Display;

use kms_envelope::{ContextError, EncryptionContext, EnvelopeContext, SecretBytes};

use super::{Envelopes, Error, Kms};

/// A column with sealed fields. The service sees `table` and `column`, and the key can require them; the row stays here.
/// Renaming either makes what was sealed unreadable: say here what the names were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    table: String,
    column: String,
}

impl Column {
    /// `table` and `column`, as this program names them.
    pub fn new(table: impl Into<String>, column: impl Into<String>) -> Self {
        Self { table: table.into(), column: column.into() }
    }

    /// The context of the field in the row `id`, its primary key, which must never change: a number, a UUID, a text of at
    /// most 1,024 bytes.
    pub fn row(&self, id: impl Display) -> Result<EnvelopeContext, ContextError> {
        Ok(EnvelopeContext {
            key: EncryptionContext::new([
                ("table".to_owned(), self.table.clone()),
                ("column".to_owned(), self.column.clone()),
            ])?,
            local: EncryptionContext::new([("row".to_owned(), id.to_string())])?,
        })
    }
}

impl<K: Kms> Envelopes<K> {
    /// Seals one field, for the bytes column of the row `id`.
    ///
    /// ```no_run
    /// # async fn example(envelopes: kms_client::envelope::Envelopes) -> Result<(), kms_client::envelope::Error> {
    /// use kms_client::envelope::Column;
    ///
    /// let diagnosis = Column::new("patients", "diagnosis");
    /// let sealed = envelopes.seal_field(&diagnosis, 4711, b"J06.9").await?;
    /// let opened = envelopes.open_field(&diagnosis, 4711, &sealed).await?;
    /// assert_eq!(opened.expose_secret(), b"J06.9");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn seal_field(
        &self,
        column: &Column,
        id: impl Display,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let context = column.row(id)?;
        self.seal(&context, plaintext).await
    }

    /// Opens one field of the row `id`.
    pub async fn open_field(
        &self,
        column: &Column,
        id: impl Display,
        sealed: &[u8],
    ) -> Result<SecretBytes, Error> {
        let context = column.row(id)?;
        self.open(&context, sealed).await
    }
}
