//! The rewrap loop: after a rotation, every row's data key goes to the version that wraps now. What is encrypted under the
//! data key, the payload, is neither decrypted nor changed, and no encryption context is needed.
//!
//! It needs no memory of its own. What is left to do are the rows that another version wraps: whoever stops it and starts
//! it again goes on where it was, and two that run at once do no harm but work twice. Applications read and write meanwhile: a
//! row that was written since it was read is left to its writer, and found again by the next pass if it is still stale.

use anyhow::bail;
use indicatif::ProgressBar;
use kms_client::envelope::{BATCH_ITEMS_MAX, Envelopes, Error};

use crate::customers::{Change, Customers};

/// One SELECT, one UPDATE, and a call for every [`BATCH_ITEMS_MAX`] data keys among them. Rows of one page that share a data
/// key share the new wrap as well, so a long page also keeps later reads cheap; a short one keeps few rows locked.
const ROWS_PER_PAGE: usize = 8 * BATCH_ITEMS_MAX;

/// What one walk over the table did.
#[derive(Default)]
struct Pass {
    found: u64,
    moved: u64,
    failed: u64,
    first_failure: Option<(i64, Error)>,
}

pub(crate) async fn rewrap(customers: &Customers, envelopes: &Envelopes) -> anyhow::Result<()> {
    let (mut moved, mut overtaken) = (0, 0);
    loop {
        let version = envelopes.primary_version().await?;
        let pass = pass(customers, envelopes, version).await?;
        moved += pass.moved;
        overtaken += pass.found - pass.moved - pass.failed;
        if let Some((id, error)) = pass.first_failure {
            let Pass { failed, .. } = pass;
            bail!("{moved} rows moved, {failed} did not, the first of them customer {id}: {error}");
        }
        if pass.found == 0 {
            println!("{moved} rows moved, {overtaken} left to other writers; version {version} wraps all");
            return Ok(());
        }
    }
}

async fn pass(customers: &Customers, envelopes: &Envelopes, version: u32) -> anyhow::Result<Pass> {
    let stale = customers.by_version().await?.into_iter().filter(|(wraps, _)| *wraps != version);
    let progress = ProgressBar::new(stale.map(|(_, count)| count).sum());
    let mut pass = Pass::default();
    let mut last = i64::MIN;
    loop {
        let page = customers.stale_after(last, version, ROWS_PER_PAGE).await?;
        let Some(end) = page.last() else { break };
        last = end.id;
        pass.found += page.len() as u64;
        let emails: Vec<&[u8]> = page.iter().map(|customer| customer.email.as_slice()).collect();
        // Neighbours often share a data key, and then one operation of the HSM moves them all.
        let results = envelopes.rewrap_all(&emails).await?;
        let mut changes = Vec::new();
        for (was, result) in page.into_iter().zip(results) {
            match result {
                Ok(Some(email)) => changes.push(Change { was, email }),
                // It is there already, and only its column is wrong.
                Ok(None) => changes.push(Change { email: was.email.clone(), was }),
                Err(error) => {
                    pass.failed += 1;
                    pass.first_failure.get_or_insert((was.id, error));
                }
            }
        }
        pass.moved += customers.change(changes).await?;
        progress.set_position(pass.found);
    }
    progress.finish_and_clear();
    Ok(pass)
}
