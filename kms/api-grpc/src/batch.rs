//! Batches: items that do not parse keep their places among those that core gets.

use kms_core::{Error, verbs::BATCH_ITEMS_MAX};
use kms_proto::v1;

use crate::status;

/// Parses every item, has `verb` do those that parse, and gives one result for each, in order.
pub(crate) async fn run<Q, P, T, F: Future<Output = Result<Vec<Result<T, Error>>, Error>>>(
    requests: Vec<Q>,
    parse: impl Fn(Q) -> Result<P, Error>,
    verb: impl FnOnce(Vec<P>) -> F,
) -> Result<Vec<Result<T, Error>>, Error> {
    if requests.is_empty() || requests.len() > BATCH_ITEMS_MAX {
        return Err(Error::invalid("requests", format!("a batch has 1 to {BATCH_ITEMS_MAX} items")));
    }
    let (good, bad) = parsed(requests, parse);
    let mut done = if good.is_empty() { Vec::new() } else { verb(good).await? }.into_iter();
    let in_order = bad.into_iter().map(|bad| match bad {
        Some(error) => Some(Err(error)),
        None => done.next(),
    });
    Ok(in_order.flatten().collect())
}

/// The items that core can take, and for each place of the batch the error of one that it cannot.
fn parsed<Q, P>(requests: Vec<Q>, parse: impl Fn(Q) -> Result<P, Error>) -> (Vec<P>, Vec<Option<Error>>) {
    let mut good = Vec::with_capacity(requests.len());
    let bad = requests.into_iter().map(|request| parse(request).map(|item| good.push(item)).err());
    let bad = bad.collect();
    (good, bad)
}

/// One function for each kind of result: they differ in their names only.
macro_rules! results {
    ($($verb:ident: $outcome:ident, $result:ident, $response:ident;)*) => {$(
        pub(crate) fn $verb(result: Result<v1::$response, Error>) -> v1::$result {
            let outcome = match result {
                Ok(response) => v1::$outcome::Outcome::Response(response),
                Err(error) => v1::$outcome::Outcome::Error(status::message(&error)),
            };
            v1::$result { outcome: Some(outcome) }
        }
    )*};
}

results! {
    sign: batch_sign_result, BatchSignResult, SignResponse;
    wrap_key: batch_wrap_key_result, BatchWrapKeyResult, WrapKeyResponse;
    unwrap_key: batch_unwrap_key_result, BatchUnwrapKeyResult, UnwrapKeyResponse;
    rewrap_key: batch_rewrap_key_result, BatchRewrapKeyResult, RewrapKeyResponse;
    generate_data_key: batch_generate_data_key_result, BatchGenerateDataKeyResult, GenerateDataKeyResponse;
    generate_data_key_without_plaintext: batch_generate_data_key_without_plaintext_result, BatchGenerateDataKeyWithoutPlaintextResult, GenerateDataKeyWithoutPlaintextResponse;
    encrypt: batch_encrypt_result, BatchEncryptResult, EncryptResponse;
    decrypt: batch_decrypt_result, BatchDecryptResult, DecryptResponse;
    re_encrypt: batch_re_encrypt_result, BatchReEncryptResult, ReEncryptResponse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_item_of_a_batch_keeps_its_place() {
        let parse = |text: &str| text.parse::<u32>().map_err(|_| Error::invalid("item", "no number"));
        let (good, bad) = parsed(vec!["1", "x", "3", ""], parse);
        let bad: Vec<_> = bad.iter().map(Option::is_some).collect();
        assert_eq!((good, bad), (vec![1, 3], vec![false, true, false, true]));
    }
}
