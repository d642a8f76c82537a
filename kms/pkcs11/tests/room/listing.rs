//! What a listing shows: other people's objects in whatever form, and each attribute that is not as it must be.

use std::{collections::BTreeMap, process::Command};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::{Session, UserType},
    types::AuthPin,
};
use kms_core::{
    Algorithm, Hsm,
    hsm::{CKA_ID_LEN_MAX, CkaId, Half, LABEL_LEN_MAX, Object, Usage},
};
use kms_softhsm::EphemeralToken;

use crate::support::{Rig, grant, soon};

/// OBJECT IDENTIFIER prime256v1 and secp256k1, DER.
const P256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const SECP256K1: &[u8] = b"\x06\x05\x2b\x81\x04\x00\x0a";

/// What a key has wrong, and what [`kms_core::hsm::KeyObject::deviation`] says of it.
type Mutation = (fn() -> Attribute, Option<&'static str>);

const MUTATIONS: [Mutation; 11] = [
    (|| Attribute::Sign(true), None),
    (|| Attribute::Private(false), Some("CKA_PRIVATE is false")),
    (|| Attribute::Sensitive(false), Some("CKA_SENSITIVE is false")),
    (|| Attribute::Extractable(true), Some("CKA_EXTRACTABLE is true")),
    (|| Attribute::Modifiable(true), Some("CKA_MODIFIABLE is true")),
    (|| Attribute::Copyable(true), Some("CKA_COPYABLE is true")),
    (|| Attribute::Sign(false), Some("CKA_SIGN is false")),
    (|| Attribute::SignRecover(true), Some("a use other than its own is allowed")),
    (|| Attribute::Decrypt(true), Some("a use other than its own is allowed")),
    (|| Attribute::Unwrap(true), Some("a use other than its own is allowed")),
    (|| Attribute::Derive(true), Some("a use other than its own is allowed")),
];

/// The same of secret keys, under a CKA_ID with another last byte.
const SECRET_MUTATIONS: [Mutation; 12] = [
    (|| Attribute::Encrypt(true), None),
    (|| Attribute::Private(false), Some("CKA_PRIVATE is false")),
    (|| Attribute::Sensitive(false), Some("CKA_SENSITIVE is false")),
    (|| Attribute::Extractable(true), Some("CKA_EXTRACTABLE is true")),
    (|| Attribute::Modifiable(true), Some("CKA_MODIFIABLE is true")),
    (|| Attribute::Encrypt(false), Some("CKA_ENCRYPT is false")),
    (|| Attribute::Decrypt(false), Some("CKA_DECRYPT is false")),
    (|| Attribute::Sign(true), Some("a use other than its own is allowed")),
    (|| Attribute::Verify(true), Some("a use other than its own is allowed")),
    (|| Attribute::Wrap(true), Some("a use other than its own is allowed")),
    (|| Attribute::Unwrap(true), Some("a use other than its own is allowed")),
    (|| Attribute::Derive(true), Some("a use other than its own is allowed")),
];

fn secret_id(number: usize) -> [u8; 16] {
    let mut id = [u8::try_from(number).unwrap(); 16];
    id[15] = 0xff;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attribute_that_is_not_as_it_must_be_is_named() {
    let rig = Rig::new().await;
    inner("mutants_made", &rig.token);
    let listed = listed(&rig).await;
    for (number, (_, expected)) in MUTATIONS.iter().enumerate() {
        let id = [u8::try_from(number).unwrap(); 16];
        let deviation = |object: &Object| match object.half {
            Half::Private(private) if object.cka_id == id => Some(private.deviation(Usage::Sign)),
            _ => None,
        };
        let found: Vec<_> = listed.iter().filter_map(deviation).collect();
        assert_eq!(found, [*expected], "mutant {number}");
    }
    for (number, (_, expected)) in SECRET_MUTATIONS.iter().enumerate() {
        let id = CkaId::from_bytes(secret_id(number));
        let secrets = rig.pool.find(&grant(), id, soon()).await.unwrap().secret;
        let found: Vec<_> = secrets.iter().map(|secret| secret.deviation(Usage::EncryptDecrypt)).collect();
        assert_eq!(found, [*expected], "secret mutant {number}");
        let listed = listed.iter().find(|object| object.cka_id == id.as_bytes()).unwrap();
        assert_eq!(listed.half, Half::Secret(secrets[0]), "secret mutant {number}");
    }
    let imported = listed.iter().find_map(|object| match object.half {
        Half::Private(private) if object.cka_id == b"imported" => Some(private),
        _ => None,
    });
    let imported = imported.unwrap();
    assert!(!imported.local && !imported.always_sensitive && !imported.never_extractable, "{imported:?}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_others_are_listed_in_whatever_form_and_what_is_no_key_is_not() {
    let rig = Rig::new().await;
    let (ours, spki) = rig.key(Algorithm::Es256).await;
    inner("strangers_made", &rig.token);
    let listed = listed(&rig).await;
    let mut by_id: BTreeMap<&[u8], Vec<&Object>> = BTreeMap::new();
    listed.iter().for_each(|object| by_id.entry(&object.cka_id).or_default().push(object));
    assert_eq!(by_id[&ours.id.as_bytes()[..]][1].half, Half::Public(Some(spki)));
    assert_eq!(by_id[&b""[..]].len(), 4, "two pairs without CKA_ID");
    let long = by_id[&[7; CKA_ID_LEN_MAX][..]][0];
    assert_eq!(long.label.len(), LABEL_LEN_MAX);
    let odd = &by_id[&b"odd"[..]];
    assert_eq!(
        (odd[0].label.as_str(), &odd[1].half),
        ("\u{fffd}\u{e9}", &Half::Public(None)),
        "no curve of ours"
    );
    let [Object { half: Half::Secret(aes), .. }] = by_id[&b"aes"[..]][..] else { panic!("one AES key") };
    assert!(aes.deviation(Usage::EncryptDecrypt).is_some());
    assert_eq!(by_id.len(), 5, "data was listed: {by_id:?}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_objects_under_one_cka_id_than_an_answer_tells_harm_no_worker() {
    let rig = Rig::new().await;
    inner("twins_made", &rig.token);
    let found = rig.pool.find(&grant(), CkaId::from_bytes([7; 16]), soon()).await.unwrap();
    assert_eq!((found.private.len(), found.public.len()), (64, 64));
    assert_eq!((listed(&rig).await.len(), rig.pool.health().respawns), (140, 0));
    rig.close().await;
}

async fn listed(rig: &Rig) -> Vec<Object> {
    let page = rig.pool.list(&grant(), None, soon()).await.unwrap();
    assert_eq!(page.next, None);
    page.objects
}

/// Runs an ignored test of this file in a process of its own: the module finds its token by the environment.
fn inner(name: &str, token: &EphemeralToken) {
    let (variable, conf) = token.env();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("listing::{name}"), "--ignored", "--nocapture"])
        .env(variable, conf)
        .env("TEST_URI", token.uri())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn mutants_made() {
    let session = session();
    for (number, (mutation, _)) in MUTATIONS.iter().enumerate() {
        let id = [u8::try_from(number).unwrap(); 16];
        let mutation = mutation();
        let mut private = vec![
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
        ];
        let kind = mutation.attribute_type();
        private.retain(|attribute| attribute.attribute_type() != kind);
        private.push(mutation);
        generate(&session, P256, &id, b"mutant/1", private);
    }
    for (number, (mutation, _)) in SECRET_MUTATIONS.iter().enumerate() {
        let mutation = mutation();
        let mut secret = vec![
            Attribute::Token(true),
            Attribute::ValueLen(32_u64.into()),
            Attribute::Id(secret_id(number).to_vec()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Modifiable(false),
            Attribute::Copyable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
        ];
        let kind = mutation.attribute_type();
        secret.retain(|attribute| attribute.attribute_type() != kind);
        secret.push(mutation);
        session.generate_key(&Mechanism::AesKeyGen, &secret).unwrap();
    }
    let scalar = [1; 32];
    let import = [
        Attribute::Class(cryptoki::object::ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(cryptoki::object::KeyType::EC),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Value(scalar.to_vec()),
        Attribute::Id(b"imported".to_vec()),
    ];
    session.create_object(&import).unwrap();
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn strangers_made() {
    let session = session();
    generate(&session, P256, b"", b"", vec![]);
    generate(&session, P256, b"", b"", vec![]);
    generate(&session, P256, &[7; 200], &[b'x'; 1000], vec![]);
    generate(&session, SECP256K1, b"odd", b"\xff\xc3\xa9", vec![]);
    let aes = [Attribute::Token(true), Attribute::ValueLen(32_u64.into()), Attribute::Id(b"aes".to_vec())];
    session.generate_key(&Mechanism::AesKeyGen, &aes).unwrap();
    let data = [
        Attribute::Class(cryptoki::object::ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(b"data".to_vec()),
        Attribute::Value(vec![1]),
    ];
    session.create_object(&data).unwrap();
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn twins_made() {
    let session = session();
    for _ in 0..70 {
        generate(&session, P256, &[7; 16], b"twin/1", vec![]);
    }
}

fn generate(session: &Session, curve: &[u8], id: &[u8], label: &[u8], mut private: Vec<Attribute>) {
    let both = [Attribute::Token(true), Attribute::Id(id.to_vec()), Attribute::Label(label.to_vec())];
    let public = [&both[..], &[Attribute::EcParams(curve.to_vec()), Attribute::Verify(true)]].concat();
    private.extend(both);
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private).unwrap();
}

fn session() -> Session {
    let uri: kms_pkcs11::Uri = std::env::var("TEST_URI").unwrap().parse().unwrap();
    let module = Pkcs11::new(&uri.module_path).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_rw_session(slot).unwrap();
    let pin = std::fs::read_to_string(uri.pin_source.unwrap()).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(pin.trim_end().into()))).unwrap();
    session
}
