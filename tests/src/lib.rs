//! Black-box tests of the whole service: the real binary, SoftHSM, SQLite, gRPC over TLS, JWKS over HTTP, and
//! verifiers that we did not write. The stories are in `tests/`, one subject a file; here is what they stand on.
//!
//! [`Service`] runs `kms dev` in a directory of its own, [`Server`] runs `kms serve` with a configuration that
//! the test writes. Both end with the value that holds them, and print their log then, which the test harness
//! shows when the test failed. Nothing here sleeps for a fixed time: [`until`] asks again until an answer
//! comes or its time is over.

mod authority;
mod binary;
mod cached_verifier;
mod command;
mod desk;
mod environment;
mod fleet;
mod iv_record;
mod jwt;
mod ledger;
mod load;
mod outcome;
mod panel;
mod pkcs11_tool;
mod processes;
mod promise;
mod proxy;
mod raw;
mod running;
mod seed;
mod server;
mod service;
mod signer;
mod test_hsm;
mod until;
mod verifiers;

pub use authority::{Authority, Says};
pub use binary::{encrypted_rows, kms};
pub use cached_verifier::CachedVerifier;
pub use command::{Output, refused};
pub use desk::Desk;
pub use environment::Environment;
pub use fleet::{Fleet, Replica};
pub use iv_record::IvRecord;
pub use jwt::{Jwt, thumbprint};
pub use ledger::{Record, records};
pub use load::{Load, Report};
pub use outcome::{Refusal, refusal};
pub use panel::{Failed, Notes, Panel, Seat, Unsigned, sign_token};
pub use pkcs11_tool::{pkcs11_tool, pkcs11_tool_without_pin};
pub use processes::{Process, Tree, kill};
pub use promise::Promise;
pub use proxy::Proxy;
pub use raw::{Answer, raw_calls};
pub use running::Running;
pub use seed::Seed;
pub use server::{Plan, Server};
pub use service::Service;
pub use signer::Signer;
pub use test_hsm::TestHsm;
pub use until::until;
pub use verifiers::{ALGORITHMS, Verdict, Verifier, jose_name, pkcs11_check, python};

/// How long anything may take that is not timed by the test itself: a start, a key generation, a command. Wide,
/// because a debug build on a busy machine is slow; nothing waits for it when all is well.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
