//! Telling the service what still lives on which version, which it wants to know before a version may be destroyed.

use kms_client::{Client, v1};

use crate::customers::Customers;

pub(crate) async fn report(
    customers: &Customers,
    client: &Client,
    key: &str,
    consumer: String,
) -> anyhow::Result<()> {
    let envelopes = customers.by_version().await?;
    let request =
        v1::ReportUsageRequest { name: key.to_owned(), consumer, envelopes: envelopes.into_iter().collect() };
    let usage = client.report_usage(request).await?;
    for v1::VersionUsage { number, envelopes, destruction_blockers, .. } in usage.versions {
        println!("version {number}: {envelopes} envelopes");
        for blocker in destruction_blockers {
            println!("  not to be destroyed: {blocker}");
        }
    }
    Ok(())
}
