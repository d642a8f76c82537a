//! Writing: a data key serves a thousand rows (`Policy`), so nearly every address is sealed without a call.

use kms_client::envelope::Envelopes;

use crate::customers::{Customer, Customers};

/// One INSERT.
const ROWS_PER_STATEMENT: u32 = 1_000;

pub(crate) async fn fill(customers: &Customers, envelopes: &Envelopes, rows: u32) -> anyhow::Result<()> {
    customers.create().await?;
    let column = Customers::email();
    let mut left = rows;
    while left > 0 {
        let mut added = Vec::new();
        for id in customers.next_ids(left.min(ROWS_PER_STATEMENT)).await? {
            let address = format!("customer-{id}@example.com");
            let email = envelopes.seal_field(&column, id, address.as_bytes()).await?;
            added.push(Customer { id, email });
        }
        customers.insert(added).await?;
        left -= left.min(ROWS_PER_STATEMENT);
    }
    println!("{rows} rows are filled");
    Ok(())
}
