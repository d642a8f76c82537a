//! The Rust SDK of kms: typed calls over gRPC and TLS.
//!
//! [`Client`] has one method for each RPC of [`v1`]. A call is bounded by a deadline, which the server is told
//! too, and is repeated within it where that is safe. Whoever counts microseconds takes the generated clients
//! from [`Client::keys`], [`Client::crypto`], [`Client::access`], [`Client::hsm`] and [`Client::status`]: they
//! authenticate and carry the deadline, but do not repeat.
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
mod error;
mod repeat;
mod tls;

pub use authentication::{Authenticated, Authentication};
pub use client::{Client, Options};
pub use error::{Error, FieldViolation, Kind};
pub use kms_proto::v1;
pub use secrecy::SecretString;
