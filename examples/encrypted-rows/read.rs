//! Reading one row: a call to unwrap its data key, unless it is in memory.

use kms_client::envelope::Envelopes;

use crate::customers::Customers;

pub(crate) async fn read(customers: &Customers, envelopes: &Envelopes, id: i64) -> anyhow::Result<()> {
    let customer = customers.find(id).await?;
    let address = envelopes.open_field(&Customers::email(), id, &customer.email).await?;
    println!("{}", String::from_utf8_lossy(address.expose_secret()));
    Ok(())
}
