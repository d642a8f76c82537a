//! Wrapping keys in software: RSAES-OAEP to the public half of a pair (RFC 8017 §7.1). The token alone unwraps.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

use crate::Error;

/// Encrypts `plaintext` to a public key (SubjectPublicKeyInfo, DER), SHA-256 and MGF1-SHA-256, with `aad` as the label.
/// Whoever has the public key can do the same: it says nothing about who did.
pub fn oaep_encrypt(spki: &[u8], plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, Error> {
    let unusable = |_| Error::internal("a stored public key does not encrypt");
    let key = PublicEncryptingKey::from_der(spki)
        .map_err(|_| Error::internal("a stored public key does not parse"))?;
    let key = OaepPublicEncryptingKey::new(key).map_err(unusable)?;
    if plaintext.len() > key.max_plaintext_size(&OAEP_SHA256_MGF1SHA256) {
        let most = key.max_plaintext_size(&OAEP_SHA256_MGF1SHA256);
        return Err(Error::invalid("plaintext", format!("this key wraps at most {most} bytes")));
    }
    let mut wrapped = vec![0; key.ciphertext_size()];
    let len =
        key.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut wrapped, Some(aad)).map_err(unusable)?.len();
    wrapped.truncate(len);
    Ok(wrapped)
}
