//! Compiles `kms.v1` without protoc: protox parses, tonic-prost-build generates, and the descriptor set that
//! server reflection serves is written beside the code.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver};

/// Every file of the package, relative to `proto/`.
const FILES: [&str; 9] = [
    "kms/v1/resources.proto",
    "kms/v1/key_service.proto",
    "kms/v1/crypto_service.proto",
    "kms/v1/wrapping.proto",
    "kms/v1/access_service.proto",
    "kms/v1/policy_service.proto",
    "kms/v1/approval_service.proto",
    "kms/v1/hsm_service.proto",
    "kms/v1/status_service.proto",
];

/// Messages that carry payloads or credentials. Their Debug is written by hand in `src/redacted.rs`.
const REDACTED: [&str; 13] = [
    ".kms.v1.SignRequest",
    ".kms.v1.SignResponse",
    ".kms.v1.VerifyRequest",
    ".kms.v1.SignJwtRequest",
    ".kms.v1.SignJwtResponse",
    ".kms.v1.WrapKeyRequest",
    ".kms.v1.UnwrapKeyResponse",
    ".kms.v1.GenerateDataKeyResponse",
    ".kms.v1.EncryptRequest",
    ".kms.v1.DecryptResponse",
    ".kms.v1.CreateAccessTokenResponse",
    ".kms.v1.ExecuteProposalResponse",
    ".kms.v1.AcceptOlderStoreRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");

    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(PathBuf::from("proto")));
    resolver.add(GoogleFileResolver::new());
    resolver.add(DescriptorSetFileResolver::new(google_rpc()?));
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("kms_v1.fds.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .skip_debug(REDACTED)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// `google/rpc/status.proto` as tonic-types ships it, under the path by which the world imports it.
fn google_rpc() -> Result<FileDescriptorSet, prost::DecodeError> {
    let mut set = FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    for file in &mut set.file {
        if file.name() == "status.proto" {
            file.name = Some("google/rpc/status.proto".to_owned());
        }
    }
    Ok(set)
}
