//! Reading everything: proof that no row was lost, and a count by what the envelopes themselves say.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use kms_client::envelope::{Envelopes, key_version};

use crate::customers::Customers;

const ROWS_PER_PAGE: usize = 1_000;

pub(crate) async fn verify(customers: &Customers, envelopes: &Envelopes) -> anyhow::Result<()> {
    let column = Customers::email();
    let (key_uid, mut counted) = (envelopes.key_uid().await?, BTreeMap::new());
    let mut last = i64::MIN;
    loop {
        let page = customers.after(last, ROWS_PER_PAGE).await?;
        let Some(end) = page.last() else { break };
        last = end.id;
        for customer in page {
            let opened = envelopes.open_field(&column, customer.id, &customer.email).await;
            opened.with_context(|| format!("customer {} does not open", customer.id))?;
            let version = key_version(&customer.email, &key_uid)?;
            *counted.entry(version.context("an address is sealed under another key")?).or_insert(0) += 1;
        }
    }
    println!("{} rows open", counted.values().sum::<u64>());
    for (version, count) in &counted {
        println!("version {version}: {count}");
    }
    let noted = customers.by_version().await?;
    ensure!(noted == counted, "the column email_key_version says {noted:?}; did somebody write meanwhile?");
    Ok(())
}
