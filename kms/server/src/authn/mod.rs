//! Authentication: who is behind a call of `kms.v1`, and by which proof.
//!
//! A bearer credential, if one is sent, decides: a bad one is refused and never replaced by what the connection would
//! prove, or whoever loses a credential would go on unnoticed under another name. Otherwise the connection's client
//! certificate decides, or the user at the other end of a unix socket. Every refusal is one and the same answer; why
//! stands in our log, without anything secret. The wrapper stands around each service of ours; health and
//! reflection are added without it.

pub mod authorities;
mod bearer;
pub mod certificate;

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use kms_core::{Caller, Clock as _, principal::Principal};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use self::{bearer::Bearer, certificate::Shown};
use crate::clock::SystemClock;

/// Finds the caller by the SHA-256 of an access token, or says why there is none: it is unknown, or it may be known and
/// this replica cannot tell. Told who the connection's certificate names, because a token may be bound to that name.
pub type Lookup = Arc<dyn Fn(&[u8; 32], Option<&Principal>) -> Result<Caller, Box<Status>> + Send + Sync>;

/// Verifies a JWT, and names its holder.
pub type JwtVerifier = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Principal>> + Send + Sync>;

/// Who is at the other end of a connection, as an extension of each of its requests. Absent when nobody has said.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Whoever has the key of this certificate.
    Certificate(Arc<Shown>),
    /// A process of this host.
    Process(Principal),
}

/// By what callers are known.
#[derive(Clone)]
pub struct Proofs {
    /// Access tokens of ours.
    pub lookup: Lookup,
    /// JWTs of others, when an issuer is configured.
    pub jwt: Option<JwtVerifier>,
}

/// A gRPC service that only authenticated callers reach. Its requests carry a [`Caller`] as extension.
#[derive(Clone)]
pub struct Authenticated<S> {
    service: S,
    proofs: Proofs,
}

impl<S> Authenticated<S> {
    /// Puts `service` behind `proofs`.
    pub fn new(service: S, proofs: Proofs) -> Self {
        Self { service, proofs }
    }
}

type Answer = Result<Response<Body>, Infallible>;

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    // Only a JWT, for whose issuer's keys we may have to wait, costs a future of its own.
    type Future = Either<Either<S::Future, Ready<Answer>>, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let bearer = Bearer::take(request.headers_mut());
        let peer = request.extensions_mut().remove::<Peer>();
        let caller = match bearer {
            Bearer::Ours(sha256) => {
                (self.proofs.lookup)(&sha256, peer.as_ref().and_then(Peer::by_certificate).as_ref())
            }
            Bearer::Jwt(jwt) => match &self.proofs.jwt {
                Some(verify) => return Either::Right(self.call_with_jwt(verify(jwt), request)),
                None => refuse("a JWT, and no issuer is configured"),
            },
            Bearer::Malformed(why) => refuse(why),
            Bearer::None => match peer.as_ref().map(Peer::principal) {
                Some(Some(principal)) => Ok(Caller::named(&principal)),
                Some(None) => refuse("a certificate that names nobody"),
                None => refuse("no credential"),
            },
        };
        Either::Left(match caller {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.service.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        })
    }
}

impl<S> Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    fn call_with_jwt(
        &mut self,
        verified: BoxFuture<'static, Option<Principal>>,
        mut request: Request<Body>,
    ) -> BoxFuture<'static, Answer> {
        // The one that was polled ready goes along; its clone stays for the next request.
        let unready = self.service.clone();
        let mut service = mem::replace(&mut self.service, unready);
        Box::pin(async move {
            match verified.await {
                Some(principal) => {
                    request.extensions_mut().insert(Caller::named(&principal));
                    service.call(request).await
                }
                None => Ok(kms_api_grpc::unauthenticated().into_http()),
            }
        })
    }
}

impl Peer {
    /// Who it is, if that is still so.
    fn principal(&self) -> Option<Principal> {
        match self {
            Self::Certificate(shown) => shown.principal(SystemClock.now()),
            Self::Process(principal) => Some(principal.clone()),
        }
    }

    /// Whom its certificate names.
    fn by_certificate(&self) -> Option<Principal> {
        match self {
            Self::Certificate(_) => self.principal(),
            Self::Process(_) => None,
        }
    }
}

/// To a stranger all refusals are one.
fn refuse(why: &'static str) -> Result<Caller, Box<Status>> {
    tracing::debug!(reason = why, "call refused: UNAUTHENTICATED");
    Err(Box::new(kms_api_grpc::unauthenticated()))
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> fmt::Debug for Authenticated<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated").finish_non_exhaustive()
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proofs").field("jwt", &self.jwt.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use http::header::AUTHORIZATION;
    use kms_core::caller::{KeyScope, Role};
    use tower::{ServiceExt as _, service_fn};
    use x509_cert::{der::asn1::Ia5String, ext::pkix::name::GeneralName};

    use super::*;
    use crate::{
        authn::authorities::Authorities,
        test_certificate::{self, Said},
    };

    const CREDENTIAL: &str = "kms_0123456789";
    const JWT: &str = "head.claims.signature";

    fn proofs() -> Proofs {
        let known: [u8; 32] = digest(&SHA256, CREDENTIAL.as_bytes()).as_ref().try_into().expect("32 bytes");
        let lookup: Lookup = Arc::new(move |sha256, _| {
            let caller = || Caller::new("access-token:test", Role::User, KeyScope::All);
            (*sha256 == known).then(caller).ok_or_else(|| Box::new(kms_api_grpc::unauthenticated()))
        });
        let jwt: JwtVerifier = Arc::new(|jwt| {
            let principal = (jwt == JWT).then(|| "jwt:corp/alice".parse().expect("a principal"));
            Box::pin(async { principal })
        });
        Proofs { lookup, jwt: Some(jwt) }
    }

    /// Calls a service that answers with the caller's name and fails when it can see the credential.
    async fn call_with(proofs: Proofs, values: &[&str], peer: Option<Peer>) -> Response<Body> {
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
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        Authenticated::new(inner, proofs).oneshot(request).await.expect("infallible")
    }

    async fn call(values: &[&str], peer: Option<Peer>) -> Response<Body> {
        call_with(proofs(), values, peer).await
    }

    fn process() -> Option<Peer> {
        Some(Peer::Process(Principal::of_uid(1_000)))
    }

    fn is_refused(response: &Response<Body>) {
        assert!(response.headers().get("caller").is_none());
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(status.message(), kms_api_grpc::unauthenticated().message());
    }

    #[tokio::test]
    async fn every_bad_credential_gets_the_same_refusal_whoever_the_peer_is() {
        let long = format!("Bearer {CREDENTIAL}{}", "x".repeat(300));
        let long_jwt = format!("Bearer {}.b.c", "a".repeat(9_000));
        let twice = format!("Bearer {CREDENTIAL}");
        let refused: [&[&str]; 15] = [
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Bearer unknown"],
            &["Bearer kms_unknown"],
            &["Basic a21z"],
            &["kms_0123456789"],
            &["Bearer  kms_0123456789"],
            &["Bearer kms_0123456789 "],
            &["Bearer other.claims.signature"],
            &["Bearer head.claims"],
            &["Bearer head.claims.signature.more"],
            &[&long],
            &[&long_jwt],
            &[&twice, &twice],
        ];
        for values in refused {
            is_refused(&call(values, None).await);
            is_refused(&call(values, process()).await);
        }
        is_refused(&call(&[], None).await);
        let no_issuer = Proofs { jwt: None, ..proofs() };
        is_refused(&call_with(no_issuer, &["Bearer head.claims.signature"], process()).await);
    }

    #[tokio::test]
    async fn a_known_credential_brings_its_caller_whoever_the_peer_is() {
        for value in ["Bearer kms_0123456789", "bearer kms_0123456789", "BEARER kms_0123456789"] {
            for peer in [None, process()] {
                let response = call(&[value], peer).await;
                assert_eq!(response.headers()["caller"], "access-token:test", "{value}");
            }
        }
        let response = call(&["Bearer head.claims.signature"], process()).await;
        assert_eq!(response.headers()["caller"], "jwt:corp/alice");
    }

    /// A certificate of an authority that gives DNS names.
    fn certificate(name: &str) -> Option<Peer> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("ca.pem");
        test_certificate::write(1, &file, &dir.path().join("key"));
        let section = format!("name = 'a'\nca_file = '{}'\ndns = true", file.display());
        let authorities = Authorities::load(&[toml::from_str(&section).expect("a section")]).expect("one");
        let names = vec![GeneralName::DnsName(Ia5String::new(name).expect("ASCII"))];
        let shown = Shown::new(vec![Said::of(names).signed(1)], Arc::new(authorities), SystemClock.now());
        Some(Peer::Certificate(Arc::new(shown)))
    }

    #[tokio::test]
    async fn without_a_credential_the_peer_decides() {
        assert_eq!(call(&[], process()).await.headers()["caller"], "unix:1000");
        assert_eq!(call(&[], certificate("db1")).await.headers()["caller"], "dns:db1");
        is_refused(&call(&[], certificate("DB1")).await);
    }

    #[tokio::test]
    async fn a_credential_that_is_too_long_is_not_even_looked_up() {
        let lookup: Lookup = Arc::new(|_, _| Ok(Caller::new("anybody", Role::User, KeyScope::All)));
        let anybody = Proofs { lookup, jwt: None };
        let response = call_with(anybody.clone(), &["Bearer kms_0"], None).await;
        assert_eq!(response.headers()["caller"], "anybody");
        let long = format!("Bearer kms_{}", "0".repeat(300));
        is_refused(&call_with(anybody, &[&long], None).await);
    }

    #[tokio::test]
    async fn the_lookup_of_a_token_is_told_whom_the_certificate_names() {
        for (peer, expected) in
            [(None, ""), (process(), ""), (certificate("db1"), "dns:db1"), (certificate("DB1"), "")]
        {
            let lookup: Lookup = Arc::new(|_, principal| {
                let told = principal.map_or("", Principal::as_str).to_owned();
                Ok(Caller::new(told, Role::User, KeyScope::All))
            });
            let response = call_with(Proofs { lookup, jwt: None }, &["Bearer kms_0"], peer).await;
            assert_eq!(response.headers()["caller"], expected);
        }
    }
}
