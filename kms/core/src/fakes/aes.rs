//! Secret keys of the token in memory, and RSA-OAEP as a token does it.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use kms_envelope::SecretBytes;

use super::entropy;
use crate::hsm::{CkaId, Fault, KeyObject, KnownAnswer};

pub(super) struct SecretKey {
    key: LessSafeKey,
    pub(super) label: String,
    pub(super) object: KeyObject,
}

impl SecretKey {
    pub(super) fn generate(label: String, object: KeyObject) -> Result<Self, Fault> {
        let mut bytes = [0; 32];
        entropy(&mut bytes).map_err(|_| failed())?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| failed())?);
        Ok(Self { key, label, object })
    }

    /// IV ‖ ciphertext ‖ tag.
    pub(super) fn wrap(&self, plaintext: &SecretBytes, aad: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut iv = [0; NONCE_LEN];
        entropy(&mut iv).map_err(|_| failed())?;
        let mut sealed = plaintext.expose_secret().to_vec();
        let nonce = Nonce::assume_unique_for_key(iv);
        self.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).map_err(|_| failed())?;
        Ok([&iv[..], &sealed].concat())
    }

    pub(super) fn unwrap(&self, mut wrapped: Vec<u8>, aad: &[u8]) -> Result<SecretBytes, Fault> {
        let (iv, sealed) = wrapped.split_at_mut_checked(NONCE_LEN).ok_or(Fault::NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(iv).map_err(|_| Fault::NotOpened)?;
        let opened = self.key.open_in_place(nonce, Aad::from(aad), sealed).map_err(|_| Fault::NotOpened)?;
        Ok(SecretBytes::new(opened.to_vec()))
    }

    pub(super) fn gave(&self, answer: &KnownAnswer, id: CkaId) -> bool {
        let opened = self.unwrap(answer.as_bytes().to_vec(), &KnownAnswer::aad(id));
        opened.is_ok_and(|text| text.expose_secret() == KnownAnswer::TEXT)
    }
}

pub(super) fn oaep_decrypt(pair: &KeyPair, wrapped: &[u8], label: &[u8]) -> Result<SecretBytes, Fault> {
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(pair).map_err(|_| failed())?;
    let key = PrivateDecryptingKey::from_pkcs8(der.as_ref()).map_err(|_| failed())?;
    let key = OaepPrivateDecryptingKey::new(key).map_err(|_| failed())?;
    let mut plaintext = vec![0; key.min_output_size()];
    let opened = key.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut plaintext, Some(label));
    Ok(SecretBytes::new(opened.map_err(|_| Fault::NotOpened)?.to_vec()))
}

fn failed() -> Fault {
    Fault::Failed("the cryptography of the fake".to_owned())
}
