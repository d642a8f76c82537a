//! The descriptor set that reflection serves: complete, and every part of it documented.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

#[expect(clippy::expect_used, reason = "a test's own set-up")]
fn files() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).expect("the set decodes").file
}

#[test]
fn no_import_is_missing() {
    let files = files();
    for file in &files {
        for import in &file.dependency {
            assert!(files.iter().any(|file| file.name() == import), "{import} is missing");
        }
    }
}

#[test]
fn no_message_field_or_method_lacks_a_comment() {
    for file in files().iter().filter(|file| file.package() == "kms.v1") {
        let info = file.source_code_info.as_ref().expect("comments are kept");
        // Paths as descriptor.proto numbers them: 4 message, 5 enum, 6 service, then fields, values, methods.
        let bare = info.location.iter().filter(|location| {
            let is_item = matches!(
                location.path[..],
                [4..=6, _] | [4, _, 2 | 4 | 8, _] | [4, _, 4, _, 2, _] | [5 | 6, _, 2, _]
            );
            is_item && location.leading_comments().trim().is_empty()
        });
        let bare: Vec<_> = bare.map(|location| (&location.path, &location.span)).collect();
        assert!(bare.is_empty(), "{} has items without a comment: {bare:?}", file.name());
    }
}

#[test]
fn the_services_and_their_methods_are_all_there() {
    let services: BTreeMap<String, Vec<String>> = files()
        .iter()
        .flat_map(|file| &file.service)
        .map(|service| {
            (service.name().into(), service.method.iter().map(|method| method.name().into()).collect())
        })
        .collect();
    let expected = [
        (
            "AccessService",
            vec![
                "CreateAccessToken",
                "ListAccessTokens",
                "RevokeAccessToken",
                "RenewAccessToken",
                "GetCaller",
                "CreateRoleBinding",
                "ListRoleBindings",
                "RevokeRoleBinding",
            ],
        ),
        (
            "ApprovalService",
            vec!["ListProposals", "GetProposal", "ApproveProposal", "RejectProposal", "ExecuteProposal"],
        ),
        (
            "CryptoService",
            vec![
                "Sign",
                "Verify",
                "SignJwt",
                "BatchSign",
                "WrapKey",
                "UnwrapKey",
                "RewrapKey",
                "GenerateDataKey",
                "GenerateDataKeyWithoutPlaintext",
                "Encrypt",
                "Decrypt",
                "ReEncrypt",
                "BatchWrapKey",
                "BatchUnwrapKey",
                "BatchRewrapKey",
                "BatchGenerateDataKey",
                "BatchGenerateDataKeyWithoutPlaintext",
                "BatchEncrypt",
                "BatchDecrypt",
                "BatchReEncrypt",
            ],
        ),
        ("HsmService", vec!["GetInventory", "QuarantineObject", "AcceptOlderStore"]),
        (
            "KeyService",
            vec![
                "CreateKey",
                "GetKey",
                "ListKeys",
                "UpdateKey",
                "RotateKey",
                "ListKeyVersions",
                "DisableKeyVersion",
                "EnableKeyVersion",
                "DestroyKeyVersion",
                "RestoreKeyVersion",
                "RevokeKeyVersion",
                "ListKeyClasses",
                "UpdateKeyClass",
                "GetPublicKey",
                "SignKeySetBundle",
                "ReportUsage",
                "GetKeyUsage",
                "RemoveConsumer",
            ],
        ),
        ("PolicyService", vec!["GetPolicy", "ListPolicies", "SetPolicy", "ExplainPolicy"]),
        ("StatusService", vec!["GetStatus"]),
    ];
    let expected: BTreeMap<String, Vec<String>> = expected
        .into_iter()
        .map(|(name, methods)| (name.to_owned(), methods.into_iter().map(str::to_owned).collect()))
        .collect();
    assert_eq!(services, expected);
}
