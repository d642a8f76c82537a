//! The encryption context: its limits and its one encoding.

use kms_envelope::{ContextError, DataKey, DataKeyLenError, EncryptionContext, RandomError, SecretBytes};

use crate::custody::context;

fn pairs(pairs: &[(&str, &str)]) -> Result<EncryptionContext, ContextError> {
    EncryptionContext::new(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
}

#[test]
fn a_context_beyond_its_limits_is_refused_and_names_what_is_wrong() {
    assert_eq!(pairs(&[("", "x")]), Err(ContextError::NameLen(0)));
    assert!(pairs(&[(&"n".repeat(128), &"v".repeat(1024))]).is_ok());
    assert_eq!(pairs(&[(&"n".repeat(129), "x")]), Err(ContextError::NameLen(129)));
    let long = pairs(&[("row", &"v".repeat(1025))]);
    assert_eq!(long, Err(ContextError::ValueLen { name: "row".to_owned(), len: 1025 }));
    assert_eq!(pairs(&[("row", "1"), ("row", "1")]), Err(ContextError::Duplicate("row".to_owned())));

    let many = |count: usize| EncryptionContext::new((0..count).map(|n| (format!("{n}"), String::new())));
    assert!(many(64).is_ok());
    assert_eq!(many(65), Err(ContextError::Pairs));
    // 2 bytes, 7 pairs of 4 + 1 + 1,024, and one of 4 + 1 + what is left.
    let long = |last: usize| {
        let full = (0..7).map(|n| (format!("{n}"), "v".repeat(1_024)));
        EncryptionContext::new(full.chain([("7".to_owned(), "v".repeat(last))]))
    };
    assert_eq!(long(982).unwrap().canonical().len(), EncryptionContext::CANONICAL_LEN_MAX);
    assert_eq!(long(983), Err(ContextError::Len));
}

#[test]
fn a_context_has_one_encoding_whatever_the_order_of_its_pairs() {
    let context = context(&[("table", "customers"), ("a", "")]);
    assert_eq!(context, pairs(&[("a", ""), ("table", "customers")]).unwrap());
    assert_eq!(context.canonical(), b"\0\x02\0\x01a\0\0\0\x05table\0\x09customers");
    assert_eq!(context.value("table"), Some("customers"));
    assert_eq!(context.pairs().collect::<Vec<_>>(), [("a", ""), ("table", "customers")]);
}

#[test]
fn names_are_bytes_and_nothing_is_normalised() {
    let (composed, decomposed) = (context(&[("caf\u{e9}", "x")]), context(&[("cafe\u{301}", "x")]));
    assert_ne!(composed.digest(), decomposed.digest());
    // By bytes: "Z" before "a" before "é".
    let ordered = context(&[("\u{e9}", ""), ("a", ""), ("Z", "")]);
    assert_eq!(ordered.pairs().map(|(name, _)| name).collect::<Vec<_>>(), ["Z", "a", "\u{e9}"]);
}

#[test]
fn digests_tell_contexts_apart() {
    let contexts = [
        context(&[]),
        context(&[("a", "")]),
        context(&[("a", "b")]),
        context(&[("ab", "")]),
        context(&[("a", "b"), ("c", "d")]),
        context(&[("a", "b\0\x01c\0\x01d")]),
    ];
    let digests: std::collections::HashSet<_> = contexts.iter().map(EncryptionContext::digest).collect();
    assert_eq!(digests.len(), contexts.len());
}

#[test]
fn debug_shows_neither_secrets_nor_values() {
    let secret = SecretBytes::new(b"hunter2".to_vec());
    assert_eq!(format!("{secret:?}"), "SecretBytes(..)");
    let key = DataKey::from_secret(SecretBytes::new(vec![0x41; 32])).unwrap();
    assert_eq!(format!("{key:?}"), "DataKey(SecretBytes(..))");
    assert_eq!(format!("{:?}", context(&[("patient", "Alice")])), r#"EncryptionContext{"patient"}"#);
}

#[test]
fn a_data_key_has_32_bytes_and_none_comes_of_a_generator_that_fails() {
    for len in [0, 16, 31, 33] {
        let refused = DataKey::from_secret(SecretBytes::new(vec![1; len])).err();
        assert_eq!(refused, Some(DataKeyLenError(len)));
    }
    assert_eq!(DataKey::generate(|_| Err(RandomError)).err(), Some(RandomError));
    let key = DataKey::generate(|bytes| {
        bytes.fill(7);
        Ok(())
    });
    assert_eq!(key.unwrap().expose_secret(), [7; 32]);
}
