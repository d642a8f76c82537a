//! The wire contract of kms: package `kms.v1`, generated from `proto/kms/v1/*.proto`.
//!
//! The `.proto` files are the source and carry the documentation; this crate adds only what the generator
//! cannot: the descriptor set for reflection, and Debug output that shows no payload and no credential
//! (prost's derived Debug prints every byte).

mod redacted;

/// Messages, clients and servers of package `kms.v1`.
#[expect(clippy::allow_attributes, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("kms.v1");
}

/// The compiled `.proto` files with their imports and comments, an encoded
/// `google.protobuf.FileDescriptorSet`: what gRPC server reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kms_v1.fds.bin"));
