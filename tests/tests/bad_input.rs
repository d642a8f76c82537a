//! Everything wrong that can come over the wire: each gives its own code, reason and message, which says what to
//! do, and loses nothing. (What an operator can do wrong: `operator_mistakes.rs`.)

use std::{fmt::Debug, fs};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};
use kms_tests::{Service, raw_calls, records, refusal};
use prost_types::Duration as WireDuration;
use tonic::{Code, Response, Status};
use v1::sign_request::Input;

const KEY: &str = "keys/sample-jwt";
const KIB: usize = 1024;

/// What a refusal must look like.
struct Wanted {
    code: Code,
    reason: &'static str,
    /// The field it names; empty for none.
    field: &'static str,
    /// A part of its message.
    says: &'static str,
}

fn invalid(field: &'static str, says: &'static str) -> Wanted {
    Wanted { code: Code::InvalidArgument, reason: "INVALID_ARGUMENT", field, says }
}

fn check<T: Debug>(what: &str, answer: Result<Response<T>, Status>, wanted: &Wanted) -> anyhow::Result<()> {
    let found = refusal(answer).with_context(|| what.to_owned())?;
    let right = found.code == wanted.code
        && found.reason == wanted.reason
        && found.field == wanted.field
        && found.message.contains(wanted.says);
    let Wanted { code, reason, field, says } = wanted;
    ensure!(right, "{what}: {found:?} instead of {code:?} {reason} of {field:?}, saying {says:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_are_refused_by_field() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let create = async |key_id: &str, key: v1::Key, request_id: &str| {
        let (key_id, request_id) = (key_id.to_owned(), request_id.to_owned());
        client.keys().create_key(v1::CreateKeyRequest { key_id, key: Some(key), request_id }).await
    };
    let key = |algorithm: &str| v1::Key { algorithm: algorithm.into(), ..Default::default() };

    let long = "a".repeat(64);
    for name in ["", "A", "a b", "a/b", "../a", "-a", ".a", "_a", "ä", "a\0", long.as_str()] {
        check(name, create(name, key("ES256"), "").await, &invalid("key_id", "1 to 63 of a-z"))?;
    }
    for algorithm in ["", "none", "HS256", "es256", "RS256-1024", "ES256K"] {
        check(algorithm, create("good", key(algorithm), "").await, &invalid("key.algorithm", "ES256"))?;
    }
    let owner = v1::Key { owner: "x".repeat(257), ..key("ES256") };
    check("owner", create("good", owner, "").await, &invalid("key.owner", "256"))?;
    let labels =
        v1::Key { labels: (0..65).map(|n| (format!("l{n}"), String::new())).collect(), ..key("ES256") };
    check("labels", create("good", labels, "").await, &invalid("key.labels", "64"))?;
    let another = v1::Key { name: "keys/another".into(), ..key("ES256") };
    check("another name", create("good", another, "").await, &invalid("key.name", "keys/{key_id}"))?;
    let without = v1::CreateKeyRequest { key_id: "good".into(), ..Default::default() };
    check("no key", client.keys().create_key(without).await, &invalid("key", ""))?;
    check("request_id", create("good", key("ES256"), "1").await, &invalid("request_id", "UUID"))?;
    let exists =
        Wanted { code: Code::AlreadyExists, reason: "ALREADY_EXISTS", field: "", says: "sample-jwt" };
    check("exists", create("sample-jwt", key("ES256"), "").await, &exists)?;

    let keys = client.list_keys(v1::ListKeysRequest::default()).await?.keys;
    ensure!(keys.len() == 1, "a refused key was made: {keys:?}");
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_cannot_be_are_refused_by_field() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    service.kms(["keys", "create", "edwards", "--algorithm", "EdDSA"]).await?.text()?;
    let sign = async |name: &str, input: Option<Input>| {
        client.crypto().sign(v1::SignRequest { name: name.into(), input, ..Default::default() }).await
    };

    check("no input", sign(KEY, None).await, &invalid("input", ""))?;
    for len in [0, 31, 33, 64] {
        check("digest", sign(KEY, Some(Input::Digest(vec![0; len]))).await, &invalid("digest", "32"))?;
    }
    let digest = Some(Input::Digest(vec![0; 64]));
    check("digest for EdDSA", sign("keys/edwards", digest).await, &invalid("digest", "message"))?;
    let large = Some(Input::Message(vec![0; 64 * KIB + 1]));
    check("message", sign(KEY, large).await, &invalid("message", "65536"))?;
    for name in
        ["", "sample-jwt", "keys/", "keys/A", "keys/a/versions/0", "keys/a/versions/01", "keys/a/versions/x"]
    {
        check(name, sign(name, message()).await, &invalid("name", ""))?;
    }
    let huge = refusal(sign(KEY, Some(Input::Message(vec![0; 1024 * KIB + 1]))).await)?;
    ensure!(matches!(huge.code, Code::OutOfRange | Code::ResourceExhausted), "{huge:?}");

    let none = v1::BatchSignRequest::default();
    check("an empty batch", client.crypto().batch_sign(none).await, &invalid("requests", "128"))?;
    let request = v1::SignRequest { name: KEY.into(), input: message(), ..Default::default() };
    let many = v1::BatchSignRequest { requests: vec![request; 129] };
    check("a batch of 129", client.crypto().batch_sign(many).await, &invalid("requests", "128"))?;

    let verify =
        v1::VerifyRequest { name: KEY.into(), signature: vec![0; 2 * KIB + 1], ..Default::default() };
    let verify = v1::VerifyRequest { input: Some(v1::verify_request::Input::Message(vec![1])), ..verify };
    check("signature", client.crypto().verify(verify).await, &invalid("signature", "2048"))?;
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_item_of_a_batch_does_not_spoil_the_others() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let item = |name: &str| v1::SignRequest { name: name.into(), input: message(), ..Default::default() };
    let requests = vec![item(KEY), item("keys/absent"), item(KEY)];
    let results = client.batch_sign(v1::BatchSignRequest { requests }).await?.results;
    let outcomes: Vec<_> = results.into_iter().map(|result| result.outcome).collect();
    use v1::batch_sign_result::Outcome;
    let as_wanted = matches!(
        &outcomes[..],
        [Some(Outcome::Response(_)), Some(Outcome::Error(error)), Some(Outcome::Response(_))]
            if error.code == Code::NotFound as i32
    );
    ensure!(as_wanted, "{outcomes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_make_no_token_are_refused() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let sign = async |claims: &str, ttl_s: Option<i64>| {
        let ttl = ttl_s.map(|seconds| WireDuration { seconds, nanos: 0 });
        let claims_json = claims.as_bytes().to_vec();
        let request = v1::SignJwtRequest { name: KEY.into(), claims_json, ttl, ..Default::default() };
        client.crypto().sign_jwt(request).await
    };

    for claims in ["", "{", "{\"a\":1,}", "nonsense"] {
        check(claims, sign(claims, Some(60)).await, &invalid("claims_json", "not JSON"))?;
    }
    for claims in ["[]", "1", "null", "\"{}\"", "{\"a\":1,\"a\":2}"] {
        check(claims, sign(claims, Some(60)).await, &invalid("claims_json", "JSON object"))?;
    }
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(64 * KIB));
    check("64 KiB", sign(&large, Some(60)).await, &invalid("claims_json", "65536"))?;
    check("no end", sign("{}", None).await, &invalid("ttl", "exp"))?;
    check("two ends", sign("{\"exp\":4102444800}", Some(60)).await, &invalid("ttl", "not both"))?;
    for exp in ["\"soon\"", "null", "{}", "1e300"] {
        let claims = format!("{{\"exp\":{exp}}}");
        check(&claims, sign(&claims, None).await, &invalid("claims_json", "exp must be a number"))?;
    }
    check("past", sign("{\"exp\":1}", None).await, &invalid("claims_json", "past"))?;
    for ttl in [0, -1] {
        check("no time", sign("{}", Some(ttl)).await, &invalid("ttl", "at least one second"))?;
    }
    let beyond = refusal(sign("{}", Some(24 * 60 * 60)).await)?;
    ensure!(beyond.code == Code::InvalidArgument && beyond.message.contains("max_token_ttl"), "{beyond:?}");
    let beyond = refusal(sign("{\"exp\":4102444800}", None).await)?;
    ensure!(beyond.code == Code::InvalidArgument && beyond.message.contains("max_token_ttl"), "{beyond:?}");
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_and_forbidden_keys_look_alike_to_those_who_may_not_know() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let administrator = service.client().await?;
    service
        .kms(["keys", "create", "mine", "--algorithm", "ES256", "--purpose", "signature"])
        .await?
        .text()?;
    let access_token =
        v1::AccessToken { role: "user".into(), keys: vec!["keys/mine".into()], ..Default::default() };
    let request = v1::CreateAccessTokenRequest {
        access_token_id: "alice".into(),
        access_token: Some(access_token),
        ..Default::default()
    };
    let secret = administrator.create_access_token(request).await?.secret;
    let file = service.dir().join("alice");
    fs::write(&file, secret)?;
    let user = service.with_token_file(file).client().await?;

    let sign = |name: &str| v1::SignRequest { name: name.into(), input: message(), ..Default::default() };
    ensure!(user.sign(sign("keys/mine")).await?.name == "keys/mine/versions/1", "her own key");
    let forbidden = refusal(user.crypto().sign(sign(KEY)).await)?;
    let absent = refusal(user.crypto().sign(sign("keys/absent")).await)?;
    ensure!(
        forbidden.code == Code::PermissionDenied && forbidden.reason == "PERMISSION_DENIED",
        "{forbidden:?}"
    );
    ensure!(forbidden == absent, "{forbidden:?} and {absent:?} can be told apart");
    let name = "keys/mine".to_owned();
    let rotate = user.keys().rotate_key(v1::RotateKeyRequest { name, ..Default::default() }).await;
    let rotate = refusal(rotate)?;
    ensure!(rotate.code == Code::PermissionDenied, "{rotate:?}");
    let known = refusal(administrator.crypto().sign(sign("keys/absent")).await)?;
    ensure!(known.code == Code::NotFound && known.reason == "NOT_FOUND", "{known:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_a_valid_credential_are_sent_away_before_anything_is_read() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let file = service.dir().join("wrong");
    for wrong in ["x", "kms_0000000000000000000000000000000000000000000"] {
        fs::write(&file, wrong)?;
        let stranger = service.with_token_file(&file).client().await?;
        let request = v1::SignRequest { name: "not even a name".into(), ..Default::default() };
        let found = refusal(stranger.crypto().sign(request).await)?;
        ensure!(found.code == Code::Unauthenticated && found.reason == "UNAUTHENTICATED", "{found:?}");
        ensure!(found.message.contains("Bearer"), "it does not say what to send: {found:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_version_does_not_sign_until_it_is_enabled() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let sign = || v1::SignRequest { name: KEY.into(), input: message(), ..Default::default() };
    service.kms(["keys", "disable", "sample-jwt", "--version", "1"]).await?.text()?;
    let found = refusal(client.crypto().sign(sign()).await)?;
    ensure!(found.code == Code::FailedPrecondition && found.reason == "NO_ACTIVE_VERSION", "{found:?}");
    ensure!(found.message.contains("enable"), "it does not say what to do: {found:?}");
    service.kms(["keys", "enable", "sample-jwt", "--version", "1"]).await?.text()?;
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn destruction_is_off_unless_the_configuration_allows_it() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let name = format!("{KEY}/versions/1");
    let request = v1::DestroyKeyVersionRequest { confirm: name.clone(), name, ..Default::default() };
    let found = refusal(client.keys().destroy_key_version(request).await)?;
    ensure!(found.code == Code::FailedPrecondition && found.reason == "DESTROY_NOT_ALLOWED", "{found:?}");
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_has_passed_is_answered_and_nothing_is_signed() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let request = v1::SignRequest { name: KEY.into(), input: message(), ..Default::default() };
    for timeout in ["0n", "1n", "1u"] {
        let answers = raw_calls(&service, "kms.v1.CryptoService/Sign", &request, timeout, 8).await?;
        let late = answers.iter().all(|answer| answer.status == Code::DeadlineExceeded as i32);
        ensure!(late, "{timeout}: {answers:#?}");
    }
    let signed = records(&service.dir())?
        .into_iter()
        .any(|r| r["action"] == "sign_raw" && r["outcome"] == "succeeded");
    ensure!(!signed, "it signed after the deadline");
    still_works(&service.client().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_request_id_has_one_effect_and_serves_one_request() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let request = |key_id: &str, algorithm: &str| v1::CreateKeyRequest {
        key_id: key_id.into(),
        key: Some(v1::Key { algorithm: algorithm.into(), ..Default::default() }),
        request_id: "0b6f2d1c-95a1-4f6e-8a57-0d6c2f9b7e11".into(),
    };
    let first = client.create_key(request("once", "ES256")).await?;
    let again = client.create_key(request("once", "ES256")).await?;
    ensure!(first.uid == again.uid && first.primary == again.primary, "{first:?} and {again:?}");
    check(
        "another request",
        client.keys().create_key(request("twice", "ES256")).await,
        &invalid("request_id", "another request"),
    )?;
    let keys = client.list_keys(v1::ListKeysRequest::default()).await?.keys;
    ensure!(keys.len() == 2, "{keys:?}");
    still_works(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_something_that_changed_meanwhile_is_aborted() -> anyhow::Result<()> {
    let service = Service::start().await?;
    let client = service.client().await?;
    let old = client.get_key(v1::GetKeyRequest { name: KEY.into() }).await?.etag;
    service.kms(["keys", "update", "sample-jwt", "--owner", "somebody"]).await?.text()?;
    let rotate = v1::RotateKeyRequest { name: KEY.into(), etag: old, ..Default::default() };
    let found = refusal(client.keys().rotate_key(rotate).await)?;
    ensure!(found.code == Code::Aborted && found.reason == "ETAG_MISMATCH", "{found:?}");
    still_works(&client).await
}

fn message() -> Option<Input> {
    Some(Input::Message(b"a message".to_vec()))
}

/// A good request works after all the bad ones.
async fn still_works(client: &Client) -> anyhow::Result<()> {
    let signed =
        client.sign(v1::SignRequest { name: KEY.into(), input: message(), ..Default::default() }).await?;
    let verify = v1::VerifyRequest {
        name: signed.name,
        input: Some(v1::verify_request::Input::Message(b"a message".to_vec())),
        signature: signed.signature,
        ..Default::default()
    };
    ensure!(client.verify(verify).await?.valid, "the signature does not verify");
    Ok(())
}
