//! The Rust SDK of kms: typed calls over gRPC and TLS.
//!
//! [`Client`] has one method for each RPC of [`v1`]. A call is bounded by a deadline, which the server is told
//! too, and is repeated within it where that is safe. Whoever counts microseconds takes the generated clients
//! from [`Client::keys`], [`Client::crypto`], [`Client::access`], [`Client::hsm`] and [`Client::status`]: they
//! authenticate and carry the deadline, but do not repeat.
//!
//! The service may have several replicas: `Options::new("kms-1:8443,kms-2:8443", ..)`. Calls are spread over those that
//! work, and one that fails on a replica is repeated on another within its deadline: a call that may be made twice
//! whenever the replica is away, any other only where the request certainly never reached it.
//!
//! Who calls is told by an access token, by a client certificate ([`ClientCertificate`]), or on a unix socket by the
//! user of the process.
//!
//! ```no_run
//! # async fn example() -> Result<(), kms_client::Error> {
//! use kms_client::{Client, Options, v1};
//!
//! let options = Options::new("localhost:8443", "a-credential".into());
//! let client = Client::connect(options).await?;
//! let request = v1::SignRequest {
//!     name: "keys/demo".into(),
//!     input: Some(v1::sign_request::Input::Message(b"hello".to_vec())),
//!     ..Default::default()
//! };
//! let signed = client.sign(request).await?;
//! println!("{} signed with {}", signed.name, signed.algorithm);
//! # Ok(())
//! # }
//! ```

mod authentication;
mod calls;
mod client;
pub mod envelope;
mod error;
mod repeat;
mod replicas;
mod tls;
mod unreached;

pub use authentication::{Authenticated, Authentication};
pub use client::{Client, ClientCertificate, Options};
pub use error::{Error, FieldViolation, Kind};
pub use kms_proto::v1;
pub use replicas::Replicas;
pub use secrecy::SecretString;
pub use unreached::Unreached;
