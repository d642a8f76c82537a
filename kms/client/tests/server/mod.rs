//! A gRPC server over TLS with a certificate of its own. It answers a few calls with empty messages, or as it
//! was told, and keeps what it saw.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future,
    net::{Shutdown, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use kms_client::v1;
use p256::{
    ecdsa::{DerSignature, SigningKey},
    pkcs8::EncodePrivateKey,
};
use prost::Message;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, body::Body, server::Grpc, transport};
use tonic_prost::ProstCodec;
use x509_cert::{
    Certificate, TbsCertificate,
    builder::{self, Builder, CertificateBuilder, profile::BuilderProfile},
    der::{Encode, EncodePem, asn1::Ia5String, pem::LineEnding},
    ext::{
        Extension, ToExtension,
        pkix::{SubjectAltName, name::GeneralName},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef},
    time::Validity,
};

pub(crate) struct Server {
    pub(crate) ca_pem: Vec<u8>,
    addr: SocketAddr,
    acceptor: TlsAcceptor,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

/// What the server is to do, and what it saw.
#[derive(Default)]
struct Script {
    failures: Mutex<VecDeque<Status>>,
    answers: Mutex<VecDeque<Vec<u8>>>,
    stalls: AtomicBool,
    connections: Mutex<Vec<std::net::TcpStream>>,
    seen: Mutex<Vec<(http::HeaderMap, Vec<u8>)>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let (ca_pem, acceptor) = identity();
        let script = Arc::new(Script::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(serve(listener, acceptor.clone(), Arc::clone(&script)));
        Self { ca_pem, addr, acceptor, script, task }
    }

    /// Ends, and begins anew on the same port.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.resume().await;
    }

    /// Takes no more connections and says goodbye on those it has.
    pub(crate) async fn stop(&mut self) {
        self.script.connections.lock().expect("unpoisoned").clear();
        self.task.abort();
        assert!((&mut self.task).await.expect_err("it was aborted").is_cancelled());
    }

    /// Dies: every connection is cut, whatever is in flight.
    pub(crate) async fn die(&mut self) {
        for connection in self.script.connections.lock().expect("unpoisoned").drain(..) {
            // One that the client has closed is not there to be shut down.
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.stop().await;
    }

    /// Begins anew on the same port after [`Self::stop`].
    pub(crate) async fn resume(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("the port is free again");
        self.task = tokio::spawn(serve(listener, self.acceptor.clone(), Arc::clone(&self.script)));
    }

    pub(crate) fn addr(&self) -> String {
        format!("localhost:{}", self.addr.port())
    }

    pub(crate) fn fail_once(&self, status: Status) {
        self.script.failures.lock().expect("unpoisoned").push_back(status);
    }

    pub(crate) fn answer_once(&self, message: &impl Message) {
        self.script.answers.lock().expect("unpoisoned").push_back(message.encode_to_vec());
    }

    pub(crate) fn stall(&self) {
        self.script.stalls.store(true, Ordering::Relaxed);
    }

    pub(crate) fn seen(&self) -> Vec<http::HeaderMap> {
        self.script.seen.lock().expect("unpoisoned").iter().map(|(headers, _)| headers.clone()).collect()
    }

    pub(crate) fn messages<M: Message + Default>(&self) -> Vec<M> {
        let seen = self.script.seen.lock().expect("unpoisoned");
        seen.iter().map(|(_, message)| M::decode(message.as_slice()).expect("it decodes")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, script: Arc<Script>) {
    let (accepted, incoming) = mpsc::channel(1);
    let connections = Arc::clone(&script);
    let open = &connections.connections;
    let accept = async {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            let tcp = tcp.into_std().expect("a socket is a socket");
            open.lock().expect("unpoisoned").push(tcp.try_clone().expect("a second handle"));
            let tcp = tokio::net::TcpStream::from_std(tcp).expect("a socket is a socket");
            // A client that does not trust us ends the handshake.
            if let Ok(tls) = acceptor.accept(tcp).await {
                let _ = accepted.send(Ok::<_, Infallible>(tls)).await;
            }
        }
    };
    let service = tower::service_fn(move |request| answer(Arc::clone(&script), request));
    let (cut, connections_end) = tokio::sync::oneshot::channel::<()>();
    let serve = transport::Server::builder().serve_with_incoming_shutdown(
        service,
        ReceiverStream::new(incoming),
        async { connections_end.await.unwrap_or_default() },
    );
    let _cut_when_dropped = cut;
    tokio::select! {
        () = accept => {}
        served = serve => served.expect("the server runs"),
    }
}

async fn answer(
    script: Arc<Script>,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Infallible> {
    Ok(match request.uri().path() {
        "/kms.v1.CryptoService/Sign" => unary::<v1::SignRequest, v1::SignResponse>(script, request).await,
        "/kms.v1.CryptoService/GenerateDataKey" => {
            unary::<v1::GenerateDataKeyRequest, v1::GenerateDataKeyResponse>(script, request).await
        }
        "/kms.v1.CryptoService/UnwrapKey" => {
            unary::<v1::UnwrapKeyRequest, v1::UnwrapKeyResponse>(script, request).await
        }
        "/kms.v1.CryptoService/BatchRewrapKey" => {
            unary::<v1::BatchRewrapKeyRequest, v1::BatchRewrapKeyResponse>(script, request).await
        }
        "/kms.v1.KeyService/GetKey" => unary::<v1::GetKeyRequest, v1::Key>(script, request).await,
        "/kms.v1.KeyService/RotateKey" => {
            unary::<v1::RotateKeyRequest, v1::KeyVersion>(script, request).await
        }
        "/kms.v1.AccessService/CreateAccessToken" => {
            unary::<v1::CreateAccessTokenRequest, v1::CreateAccessTokenResponse>(script, request).await
        }
        path => Status::unimplemented(path).into_http(),
    })
}

async fn unary<Req, Res>(script: Arc<Script>, request: http::Request<Body>) -> http::Response<Body>
where
    Req: Message + Default + 'static,
    Res: Message + Default + 'static,
{
    let method = tower::service_fn(move |request: Request<Req>| {
        let script = Arc::clone(&script);
        async move {
            let headers = request.metadata().clone().into_headers();
            let message = request.get_ref().encode_to_vec();
            script.seen.lock().expect("unpoisoned").push((headers, message));
            if script.stalls.load(Ordering::Relaxed) {
                future::pending::<()>().await;
            }
            match script.failures.lock().expect("unpoisoned").pop_front() {
                Some(status) => Err(status),
                None => {
                    let answer = script.answers.lock().expect("unpoisoned").pop_front().unwrap_or_default();
                    Ok(Response::new(Res::decode(answer.as_slice()).expect("it decodes")))
                }
            }
        }
    });
    Grpc::new(ProstCodec::<Res, Req>::default()).unary(method, request).await
}

/// A self-signed certificate for `localhost`, which is its own authority.
fn identity() -> (Vec<u8>, TlsAcceptor) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let key = SigningKey::from_slice(&[NEXT.fetch_add(1, Ordering::Relaxed); 32]).expect("a scalar in range");
    let spki = SubjectPublicKeyInfo::from_key(key.verifying_key()).expect("an EC key encodes");
    let validity = Validity::from_now(Duration::from_secs(3600)).expect("a valid time");
    let certificate = CertificateBuilder::new(Localhost, SerialNumber::from(1_u32), validity, spki)
        .and_then(|builder| builder.build::<_, DerSignature>(&key))
        .expect("the certificate is made");
    (pem(&certificate), acceptor(&certificate, &key))
}

fn pem(certificate: &Certificate) -> Vec<u8> {
    certificate.to_pem(LineEnding::LF).expect("a certificate encodes").into_bytes()
}

fn acceptor(certificate: &Certificate, key: &SigningKey) -> TlsAcceptor {
    let key = PrivatePkcs8KeyDer::from(key.to_pkcs8_der().expect("a key encodes").as_bytes().to_vec());
    let chain = vec![certificate.to_der().expect("a certificate encodes").into()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from(key))
        .expect("key and certificate belong together");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

struct Localhost;

impl BuilderProfile for Localhost {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        "CN=localhost".parse().expect("a well-formed name")
    }

    fn build_extensions(
        &self,
        _spk: SubjectPublicKeyInfoRef<'_>,
        _issuer_spk: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let names = SubjectAltName(vec![GeneralName::DnsName(Ia5String::new("localhost")?)]);
        Ok(vec![names.to_extension(tbs.subject(), &[])?])
    }
}
