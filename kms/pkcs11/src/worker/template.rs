//! Templates of key pairs: one purpose per key, never extractable, never changed (PKCS#11 v3.1 §4.8, §4.9).

use cryptoki::object::{Attribute, AttributeType};
use kms_core::hsm::{NewKeyPair, PrivateObject};

use crate::mechanism::Generation;

/// The private half: signs, and nothing else. (WRAP with DECRYPT, or a copy that may be changed, would let anybody
/// with the PIN carry the key out.)
pub(super) fn private(new: &NewKeyPair, generation: &Generation, with_allowed: bool) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Id(new.id.as_bytes().to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ];
    if with_allowed {
        template.push(Attribute::AllowedMechanisms(generation.allowed.clone()));
    }
    template
}

/// The public half: verifies, and is visible without login, so that stock tools find it.
pub(super) fn public(new: &NewKeyPair, generation: &Generation) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Modifiable(false),
        Attribute::Verify(true),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
        Attribute::Derive(false),
        Attribute::Id(new.id.as_bytes().to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ];
    template.extend(generation.public.iter().cloned());
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

/// The private key object that these attributes describe. What the token does not tell counts as unsafe, except for a
/// use that it does not know.
pub(super) fn private_object(attributes: &[Attribute]) -> PrivateObject {
    let mut object = PrivateObject {
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
            Attribute::SignRecover(value)
            | Attribute::Decrypt(value)
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
        assert!(private_object(&[]).deviation().is_some());
    }
}
