//! Fields of a database stay in their place.

use kms_client::envelope::{Column, Error};

use crate::{envelopes, memory::Memory};

#[tokio::test]
async fn a_field_opens_in_its_own_place_only() {
    let envelopes = envelopes(&Memory::new());
    let diagnosis = Column::new("patients", "diagnosis");
    let sealed = envelopes.seal_field(&diagnosis, 1, b"J06.9").await.expect("it is sealed");
    for (column, row) in [
        (diagnosis.clone(), 2),
        (Column::new("patients", "treatment"), 1),
        (Column::new("visitors", "diagnosis"), 1),
        (Column::new("diagnosis", "patients"), 1),
    ] {
        let error = envelopes.open_field(&column, row, &sealed).await.expect_err("it was moved");
        assert!(matches!(error, Error::NotOpened), "{error}");
    }
    let opened = envelopes.open_field(&diagnosis, 1, &sealed).await.expect("it opens");
    assert_eq!(opened.expose_secret(), b"J06.9");
}

#[tokio::test]
async fn an_empty_field_is_a_field() {
    let envelopes = envelopes(&Memory::new());
    let column = Column::new("patients", "diagnosis");
    let sealed = envelopes.seal_field(&column, "a-uuid", b"").await.expect("it is sealed");
    assert!(envelopes.open_field(&column, "a-uuid", &sealed).await.expect("it opens").is_empty());
}

#[tokio::test]
async fn a_row_whose_name_is_too_long_is_refused() {
    let envelopes = envelopes(&Memory::new());
    let id = "x".repeat(1_025);
    let error = envelopes.seal_field(&Column::new("t", "c"), id, b"").await.expect_err("too long");
    assert!(matches!(error, Error::Context(_)), "{error}");
}
