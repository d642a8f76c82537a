//! Authentication: who is behind a call of `kms.v1`, by the access token that it presents (RFC 6750 §2.1).
//!
//! The credential is hashed at once and looked up by its hash, so nothing here compares secrets and nothing can
//! log one. A missing, malformed, unknown, expired or revoked credential gets one and the same answer. The
//! wrapper stands around each service of ours; health and reflection are added without it.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use aws_lc_rs::digest::{SHA256, digest};
use futures::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use kms_core::Caller;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

/// Longest credential in bytes; ours have 43 and a short prefix.
const CREDENTIAL_LEN_MAX: usize = 256;
/// Longest credential with its scheme.
const HEADER_LEN_MAX: usize = CREDENTIAL_LEN_MAX + "Bearer ".len();

/// Finds the caller by the SHA-256 of a credential, or says why there is none: it is unknown, or it may be known and
/// this replica cannot tell.
pub type Lookup = Arc<dyn Fn(&[u8; 32]) -> Result<Caller, Box<Status>> + Send + Sync>;

/// A gRPC service that only authenticated callers reach. Its requests carry a [`Caller`] as extension.
#[derive(Clone)]
pub struct Authenticated<S> {
    service: S,
    lookup: Lookup,
}

impl<S> Authenticated<S> {
    /// Puts `service` behind `lookup`.
    pub fn new(service: S, lookup: Lookup) -> Self {
        Self { service, lookup }
    }
}

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Removed, not read: no handler and no log behind this line ever sees the credential.
        let sha256 = credential_sha256(request.headers());
        request.headers_mut().remove(AUTHORIZATION);
        let caller = match sha256 {
            Some(sha256) => (self.lookup)(&sha256),
            None => Err(Box::new(kms_api_grpc::unauthenticated())),
        };
        match caller {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.service.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> fmt::Debug for Authenticated<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated").finish_non_exhaustive()
    }
}

/// SHA-256 of the bearer credential; `None` unless there is exactly one, well-formed.
fn credential_sha256(headers: &HeaderMap) -> Option<[u8; 32]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() || value.len() > HEADER_LEN_MAX {
        return None;
    }
    let (scheme, credential) = value.split_at_checked("Bearer ".len())?;
    let well_formed = scheme.eq_ignore_ascii_case(b"Bearer ")
        && !credential.is_empty()
        && credential.iter().all(u8::is_ascii_graphic);
    if !well_formed {
        return None;
    }
    digest(&SHA256, credential).as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use kms_core::caller::{KeyScope, Role};
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    const CREDENTIAL: &str = "kms_0123456789";

    /// Calls a service that answers with the caller's name and fails when it can see the credential.
    async fn call(values: &[&str]) -> Response<Body> {
        let known: [u8; 32] = digest(&SHA256, CREDENTIAL.as_bytes()).as_ref().try_into().expect("32 bytes");
        let lookup: Lookup = Arc::new(move |sha256| {
            let caller = || Caller::new("access-token:test", Role::User, KeyScope::All);
            (*sha256 == known).then(caller).ok_or_else(|| Box::new(kms_api_grpc::unauthenticated()))
        });
        let inner = service_fn(async |request: Request<Body>| {
            assert!(request.headers().get(AUTHORIZATION).is_none(), "the credential went on");
            let caller = request.extensions().get::<Caller>().expect("a caller");
            let response = Response::builder().header("caller", caller.name()).body(Body::empty());
            Ok::<_, Infallible>(response.expect("a response"))
        });
        let mut request = Request::new(Body::empty());
        for value in values {
            request.headers_mut().append(AUTHORIZATION, value.parse().expect("a header value"));
        }
        Authenticated::new(inner, lookup).oneshot(request).await.expect("infallible")
    }

    #[tokio::test]
    async fn every_bad_credential_gets_the_same_refusal() {
        let long = format!("Bearer {}", "x".repeat(CREDENTIAL_LEN_MAX + 1));
        let twice = format!("Bearer {CREDENTIAL}");
        let refused: [&[&str]; 11] = [
            &[],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Bearer unknown"],
            &["Basic a21z"],
            &["kms_0123456789"],
            &["Bearer  kms_0123456789"],
            &["Bearer kms_0123456789 "],
            &[&long],
            &[&twice, &twice],
        ];
        for values in refused {
            let response = call(values).await;
            assert!(response.headers().get("caller").is_none(), "{values:?}");
            let status = Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{values:?}");
            assert_eq!(status.message(), kms_api_grpc::unauthenticated().message(), "{values:?}");
        }
    }

    #[tokio::test]
    async fn a_known_credential_brings_its_caller() {
        for value in ["Bearer kms_0123456789", "bearer kms_0123456789", "BEARER kms_0123456789"] {
            let response = call(&[value]).await;
            assert_eq!(response.headers()["caller"], "access-token:test", "{value}");
        }
    }
}
