//! Many items in one call: each has a grant, a record and an outcome of its own, and all of them share one wait for the
//! disk.

use std::future::Future;

use futures::future::join_all;

use crate::{Admission, AuditLog, Error, Unsettled};

/// Most items of one batch.
pub const BATCH_ITEMS_MAX: usize = 128;

/// What became of one item, before it is settled. The error is that of somebody who was not admitted.
pub(super) type Item<A, T> = Result<(Admission<A>, Result<Unsettled<T>, Error>), Error>;

/// Does `one` for every request, side by side, and settles all together.
pub(super) async fn batch<Q, A: AuditLog, T, F: Future<Output = Item<A, T>>>(
    requests: Vec<Q>,
    one: impl Fn(Q) -> F,
) -> Result<Vec<Result<T, Error>>, Error> {
    if requests.is_empty() || requests.len() > BATCH_ITEMS_MAX {
        return Err(Error::invalid("requests", format!("a batch has 1 to {BATCH_ITEMS_MAX} items")));
    }
    let (mut denied, mut admitted) = (Vec::new(), Vec::new());
    for (place, item) in join_all(requests.into_iter().map(one)).await.into_iter().enumerate() {
        match item {
            Ok(item) => admitted.push(item),
            Err(error) => denied.push((place, error)),
        }
    }
    let mut results = Admission::settle_all(admitted).await?;
    for (place, error) in denied {
        results.insert(place, Err(error));
    }
    Ok(results)
}

/// Settles one item alone.
pub(super) async fn single<A: AuditLog, T>(item: impl Future<Output = Item<A, T>>) -> Result<T, Error> {
    let (admission, result) = item.await?;
    admission.settle(result).await
}
