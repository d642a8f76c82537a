//! A caller that believes nothing: each signature is verified under the key that it named.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use kms_client::{Client, v1};
use tonic::Request;

use crate::Refusal;

/// An uncompressed point of P-256 is the end of its SubjectPublicKeyInfo (RFC 5480 §2.2).
const POINT_LEN: usize = 65;

/// Signs with ES256 keys in turn and checks what comes back.
#[derive(Debug, Clone)]
pub struct Signer {
    client: Client,
    keys: Arc<[Key]>,
    calls: Arc<AtomicU64>,
    wrong: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Key {
    name: String,
    point: Vec<u8>,
}

impl Signer {
    /// Makes `count` keys.
    pub async fn with_new_keys(client: &Client, count: usize) -> anyhow::Result<Self> {
        let mut keys = Vec::new();
        for number in 0..count {
            let key = Some(v1::Key { algorithm: "ES256".into(), ..Default::default() });
            let key_id = format!("signer-{number}");
            let made = client.create_key(v1::CreateKeyRequest { key_id, key, ..Default::default() }).await?;
            let request = v1::GetPublicKeyRequest { name: made.name.clone() };
            let spki = client.keys().get_public_key(request).await?.into_inner().spki_der;
            let at = spki.len().checked_sub(POINT_LEN).context("no SubjectPublicKeyInfo")?;
            keys.push(Key { name: made.name, point: spki[at..].to_vec() });
        }
        Ok(Self { client: client.clone(), keys: keys.into(), calls: Arc::default(), wrong: Arc::default() })
    }

    /// The same keys over another connection.
    pub fn over(&self, client: &Client) -> Self {
        Self { client: client.clone(), ..self.clone() }
    }

    /// Signs a message of its own once, without any repetition.
    pub async fn sign(&self, deadline: Duration) -> Result<(), Refusal> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let key = &self.keys[usize::try_from(call).unwrap_or_default() % self.keys.len()];
        let message = format!("message {call}").into_bytes();
        let input = Some(v1::sign_request::Input::Message(message.clone()));
        let mut request =
            Request::new(v1::SignRequest { name: key.name.clone(), input, ..Default::default() });
        request.set_timeout(deadline);
        let signed = self.client.crypto().sign(request).await?.into_inner();
        let right = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.point)
            .verify(&message, &signed.signature)
            .is_ok();
        self.wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
        Ok(())
    }

    /// Fails when any signature until now was not one of its key over its message.
    pub fn check(&self) -> anyhow::Result<()> {
        let wrong = self.wrong.load(Ordering::Relaxed);
        ensure!(wrong == 0, "{wrong} wrong signatures were released");
        Ok(())
    }
}
