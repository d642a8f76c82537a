//! The variables that the shim reads, in the environment of the process that loads it.

/// Must be `1`, for the shim to start and for kms to accept it.
pub const DEV_FLAG: &str = "KMS_DEV_FAULT_INJECTION";
/// Names the module behind the shim.
pub const MODULE: &str = "KMS_FAULTY_MODULE";
/// Names the controller's socket. Without it the shim forwards everything.
pub const SOCKET: &str = "KMS_FAULTY_SOCKET";
/// Names a file to which every use of a key with AES-GCM is appended, a [`super::line::Question::Iv`] a line, with a
/// controller or without. Without it none is.
pub const IVS: &str = "KMS_FAULTY_IVS";
