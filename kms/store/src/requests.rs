//! Remembered requests.

use kms_core::{
    store::{Fault, RememberedRequest},
    time::Timestamp,
};

use crate::{rows, session::Session, statement::Statement};

pub(crate) async fn find<S: Session>(session: &mut S, id: &str) -> Result<Option<RememberedRequest>, Fault> {
    let select = Statement::new(
        "SELECT id, fingerprint, key_id, version, at_us
         FROM requests WHERE id = $1",
    )
    .bind(id);
    let found = session.fetch(select).await.map_err(S::fault)?;
    found.first().map(|row| rows::request(row)).transpose()
}

pub(crate) async fn forget<S: Session>(session: &mut S, before: Timestamp) -> Result<u64, Fault> {
    let delete = Statement::new("DELETE FROM requests WHERE at_us < $1").bind(before.as_microsecond());
    session.execute(delete).await.map_err(S::fault)
}
