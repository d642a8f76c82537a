//! Templates of keys: one purpose per key, never extractable, never changed (PKCS#11 v3.1 §4.8 to §4.10).

use cryptoki::object::{Attribute, AttributeType};
use kms_core::hsm::{KeyObject, NewKey, Usage};

use crate::mechanism::Generation;

/// The private half: signs or decrypts, and nothing else. (WRAP with DECRYPT, or a copy that may be changed, would let
/// anybody with the PIN carry the key out.)
pub(super) fn private(new: &NewKey, generation: &Generation, with_allowed: bool) -> Vec<Attribute> {
    let own = [
        Attribute::Sign(new.usage == Usage::Sign),
        Attribute::SignRecover(false),
        Attribute::Decrypt(new.usage == Usage::Decrypt),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    guarded(new, generation, with_allowed, own)
}

/// A secret key: encrypts and decrypts, and nothing else. Other keys pass through it as data: it has no WRAP.
pub(super) fn secret(new: &NewKey, generation: &Generation, with_allowed: bool) -> Vec<Attribute> {
    let own = [
        Attribute::Encrypt(new.usage == Usage::EncryptDecrypt),
        Attribute::Decrypt(new.usage == Usage::EncryptDecrypt),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    let own = own.into_iter().chain(generation.parameters.iter().cloned());
    guarded(new, generation, with_allowed, own)
}

/// What every key has that must not leave the token.
fn guarded(
    new: &NewKey,
    generation: &Generation,
    with_allowed: bool,
    own: impl IntoIterator<Item = Attribute>,
) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Id(new.id.as_bytes().to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ];
    template.extend(own);
    if with_allowed {
        template.push(Attribute::AllowedMechanisms(generation.allowed.clone()));
    }
    template
}

/// The public half: verifies or encrypts, and is visible without login, so that stock tools find it.
pub(super) fn public(new: &NewKey, generation: &Generation) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Modifiable(false),
        Attribute::Verify(new.usage == Usage::Sign),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(new.usage == Usage::Decrypt),
        Attribute::Wrap(false),
        Attribute::Derive(false),
        Attribute::Id(new.id.as_bytes().to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ];
    template.extend(generation.parameters.iter().cloned());
    template
}

/// What to read of a private key object.
pub(super) const PRIVATE_ATTRIBUTES: [AttributeType; 14] = [
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Local,
    AttributeType::Modifiable,
    AttributeType::Copyable,
    AttributeType::Sign,
    AttributeType::SignRecover,
    AttributeType::Decrypt,
    AttributeType::Unwrap,
    AttributeType::Derive,
];

/// What to read of a secret key object.
pub(super) const SECRET_ATTRIBUTES: [AttributeType; 16] = [
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Local,
    AttributeType::Modifiable,
    AttributeType::Copyable,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
];

/// The private or secret key object that these attributes describe. What the token does not tell counts as unsafe,
/// except for a use that it does not know.
pub(super) fn key_object(attributes: &[Attribute]) -> KeyObject {
    let mut object = KeyObject {
        token: false,
        private: false,
        sensitive: false,
        extractable: true,
        always_sensitive: false,
        never_extractable: false,
        local: false,
        modifiable: true,
        copyable: None,
        sign: false,
        encrypt: false,
        decrypt: false,
        other_use: false,
    };
    for attribute in attributes {
        match *attribute {
            Attribute::Token(value) => object.token = value,
            Attribute::Private(value) => object.private = value,
            Attribute::Sensitive(value) => object.sensitive = value,
            Attribute::Extractable(value) => object.extractable = value,
            Attribute::AlwaysSensitive(value) => object.always_sensitive = value,
            Attribute::NeverExtractable(value) => object.never_extractable = value,
            Attribute::Local(value) => object.local = value,
            Attribute::Modifiable(value) => object.modifiable = value,
            Attribute::Copyable(value) => object.copyable = Some(value),
            Attribute::Sign(value) => object.sign = value,
            Attribute::Encrypt(value) => object.encrypt = value,
            Attribute::Decrypt(value) => object.decrypt = value,
            Attribute::SignRecover(value)
            | Attribute::Verify(value)
            | Attribute::Wrap(value)
            | Attribute::Unwrap(value)
            | Attribute::Derive(value) => object.other_use |= value,
            _ => {}
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_tells_nothing_deviates() {
        for usage in [Usage::Sign, Usage::Decrypt, Usage::EncryptDecrypt] {
            assert!(key_object(&[]).deviation(usage).is_some());
        }
    }
}
