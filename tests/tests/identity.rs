//! Who a caller is, told by what the connection proves: client certificates and the users of a unix socket. Until
//! policy gives them anything, a caller who is known is denied, and one who is not is UNAUTHENTICATED.

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use kms_client::{Client, ClientCertificate, Options, v1};
use kms_tests::{Authority, Environment, PATIENCE, Plan, Proxy, Says, Server, kill, records, until};
use rustix::process::Signal;
use tonic::Code;
use x509_cert::{der::oid::db::rfc5280::ID_KP_SERVER_AUTH, ext::pkix::KeyUsages};

const SPIFFE_ID: &str = "spiffe://example.org/ns/a/sa/web";

/// A server that knows `spiffe` for a trust domain and `names` for DNS names and subjects.
async fn server(spiffe: &Authority, names: &Authority) -> anyhow::Result<Server> {
    let mut plan = Plan::new()?;
    let bundle = |name: &str, authority: &Authority| -> anyhow::Result<String> {
        let file = plan.dir().join(name);
        fs::write(&file, authority.pem()?)?;
        Ok(file.display().to_string())
    };
    let sections = format!(
        "[[authn.client_ca]]\nname = 'spiffe'\nca_file = '{}'\ntrust_domain = 'example.org'\n\
         [[authn.client_ca]]\nname = 'names'\nca_file = '{}'\ndns = true\nsubject = true",
        bundle("spiffe.pem", spiffe)?,
        bundle("names.pem", names)?,
    );
    plan.more.push(("authn", sections));
    plan.bootstrap().await?;
    plan.start().await
}

fn options(service: &Environment, certificate: Option<&ClientCertificate>) -> anyhow::Result<Options> {
    let mut options = Options::without_token(&service.addr);
    options.ca_pem = Some(fs::read(&service.ca_file)?);
    options.client_certificate = certificate.cloned();
    (options.connect_timeout, options.timeout) = (PATIENCE, PATIENCE);
    Ok(options)
}

/// What a call on a connection of its own comes to.
async fn outcome(options: Options) -> anyhow::Result<Code> {
    // With TLS 1.3 a client learns only after its own handshake that the server did not like it.
    match Client::connect(options).await {
        Ok(client) => call(&client).await,
        Err(error) if error.kind() == kms_client::Kind::Unavailable => Ok(Code::Unavailable),
        Err(error) => Err(error.into()),
    }
}

/// One call, which is not repeated. UNAVAILABLE when the connection fails, whatever the client makes of that.
async fn call(client: &Client) -> anyhow::Result<Code> {
    let request = v1::GetKeyRequest { name: "keys/absent".into() };
    Ok(match client.keys().get_key(request).await {
        Ok(_) => Code::Ok,
        // The server's own words have no cause on our side.
        Err(status) if status.source().is_some() => Code::Unavailable,
        Err(status) => status.code(),
    })
}

async fn shown(service: &Environment, certificate: &ClientCertificate) -> anyhow::Result<Code> {
    outcome(options(service, Some(certificate))?).await
}

/// The callers of the denials on record.
fn denied_callers(dir: &Path) -> anyhow::Result<Vec<String>> {
    let denied = records(dir)?.into_iter().filter(|record| record["outcome"] == "denied");
    Ok(denied.filter_map(|record| record["caller"].as_str().map(str::to_owned)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_a_good_certificate_is_known_by_its_one_name() -> anyhow::Result<()> {
    let (spiffe, names) = (Authority::new("spiffe")?, Authority::new("names")?);
    let server = server(&spiffe, &names).await?;
    let dir = server.plan.dir();
    let with_dns_too = Says { dns: vec!["web.example.org".into()], ..Says::uris(&[SPIFFE_ID]) };
    for (authority, says, name) in [
        (&spiffe, with_dns_too, SPIFFE_ID),
        (&names, Says::dns(&["db1.example.org"]), "dns:db1.example.org"),
        (&names, Says::subject("CN=db1,O=Example"), "subject:CN=db1,O=Example"),
    ] {
        let certificate = authority.issue(&says, dir, "caller")?;
        ensure!(shown(&server, &certificate).await? == Code::PermissionDenied, "{name} is not known");
        let callers = denied_callers(dir)?;
        ensure!(callers.last().is_some_and(|caller| caller == name), "{name}: {callers:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_nothing_is_refused() -> anyhow::Result<()> {
    let (spiffe, names) = (Authority::new("spiffe")?, Authority::new("names")?);
    let server = server(&spiffe, &names).await?;
    let dir = server.plan.dir();
    let stranger = Authority::new("spiffe")?;
    let good = || Says::uris(&[SPIFFE_ID]);
    let signs_others = KeyUsages::DigitalSignature | KeyUsages::KeyCertSign;

    // Its connection does not come about.
    for (authority, says, why) in [
        (&stranger, good(), "a stranger's authority of the same name"),
        (&spiffe, Says { begins_s: -7_200, ends_s: -3_600, ..good() }, "expired"),
        (&spiffe, Says { begins_s: 3_600, ends_s: 7_200, ..good() }, "not yet valid"),
        (&spiffe, Says { purpose: ID_KP_SERVER_AUTH, ..good() }, "for servers only"),
        (&spiffe, Says { is_ca: true, ..good() }, "one of an authority"),
    ] {
        let certificate = authority.issue(&says, dir, "caller")?;
        let code = shown(&server, &certificate).await?;
        ensure!(code == Code::Unavailable, "{why}: {code:?}");
    }
    // Its connection stands, for a token may decide; by itself it names nobody.
    for (authority, says, why) in [
        (&spiffe, Says::uris(&["spiffe://example.com/ns/a/sa/web"]), "another trust domain"),
        (&spiffe, Says::uris(&[SPIFFE_ID, "spiffe://example.org/b"]), "two SPIFFE IDs"),
        (&spiffe, Says::uris(&[SPIFFE_ID, "https://example.org/"]), "another URI beside it"),
        (&spiffe, Says::uris(&["spiffe://Example.org/a"]), "a capital in the domain"),
        (&spiffe, Says::uris(&["spiffe://example.org/a/../b"]), "dot segments"),
        (&spiffe, Says::uris(&["spiffe://example.org/%61"]), "percent-encoding"),
        (&spiffe, Says::uris(&["spiffe://example.org/a "]), "a space at the end"),
        (&spiffe, Says { usage: signs_others, ..good() }, "it may sign certificates"),
        (&spiffe, Says::dns(&["db1.example.org"]), "a name that its authority may not give"),
        (&names, good(), "the SPIFFE ID of another authority"),
        (&names, Says::dns(&["a.example.org", "b.example.org"]), "two DNS names"),
        (&names, Says::dns(&["DB1.example.org"]), "a capital in the DNS name"),
        (&names, Says::subject("CN=a\\,O=Example"), "a subject with an escape"),
    ] {
        let certificate = authority.issue(&says, dir, "caller")?;
        let code = shown(&server, &certificate).await?;
        ensure!(code == Code::Unauthenticated, "{why}: {code:?}");
        let mut with_token = options(&server, Some(&certificate))?;
        with_token.access_token = Some(server.access_token()?.into());
        ensure!(outcome(with_token).await? == Code::NotFound, "{why}: the token did not decide");
    }
    ensure!(denied_callers(dir)?.is_empty(), "somebody was known: {:?}", denied_callers(dir)?);

    // Nothing at all, and a bad token beside a good certificate.
    ensure!(outcome(options(&server, None)?).await? == Code::Unauthenticated);
    let certificate = spiffe.issue(&good(), dir, "caller")?;
    for bad in ["kms_unknown", "a.b.c", "nonsense"] {
        let mut options = options(&server, Some(&certificate))?;
        options.access_token = Some(bad.to_owned().into());
        ensure!(outcome(options).await? == Code::Unauthenticated, "{bad}: the certificate took its place");
    }
    ensure!(shown(&server, &certificate).await? == Code::PermissionDenied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_stops_working_on_an_open_connection() -> anyhow::Result<()> {
    let (spiffe, names) = (Authority::new("spiffe")?, Authority::new("names")?);
    let server = server(&spiffe, &names).await?;
    let says = Says { ends_s: 15, ..Says::uris(&[SPIFFE_ID]) };
    let certificate = spiffe.issue(&says, server.plan.dir(), "caller")?;
    let client = Client::connect(options(&server, Some(&certificate))?).await?;
    ensure!(call(&client).await? == Code::PermissionDenied, "it is not known");
    until("it has expired", PATIENCE, async || {
        let code = call(&client).await?;
        // A second connection would not come about: UNAVAILABLE.
        ensure!(matches!(code, Code::PermissionDenied | Code::Unauthenticated), "{code:?}");
        Ok((code == Code::Unauthenticated).then_some(()))
    })
    .await
}

/// Calls without a pause until it is told to end; every one must succeed.
struct Stream {
    end: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Stream {
    fn begin(client: Client) -> Self {
        let (end, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counts) = (Arc::clone(&end), Arc::clone(&made));
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                client
                    .keys()
                    .list_keys(v1::ListKeysRequest::default())
                    .await
                    .context("a call was dropped")?;
                counts.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { end, made, task }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    async fn end(self) -> anyhow::Result<()> {
        self.end.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_and_certificates_are_replaced_and_no_call_is_dropped() -> anyhow::Result<()> {
    let (first, names) = (Authority::new("first")?, Authority::new("names")?);
    let server = server(&first, &names).await?;
    let dir = server.plan.dir();
    let bundle = dir.join("spiffe.pem");
    let second = Authority::new("second")?;
    let old = first.issue(&Says::uris(&["spiffe://example.org/old"]), dir, "old")?;
    let new = second.issue(&Says::uris(&["spiffe://example.org/new"]), dir, "new")?;

    let mut with_token = options(&server, Some(&old))?;
    with_token.access_token = Some(server.access_token()?.into());
    let stream = Stream::begin(Client::connect(with_token).await?);
    let old_client = Client::connect(options(&server, Some(&old))?).await?;
    ensure!(call(&old_client).await? == Code::PermissionDenied, "it is not known");
    ensure!(shown(&server, &new).await? == Code::Unavailable, "it is known too soon");

    fs::write(&bundle, "no authority")?;
    until("the useless bundle is counted", PATIENCE, async || {
        let failures = server.metric("kms_tls_reload_failures_total").await?;
        Ok((failures == 1.0).then_some(()))
    })
    .await?;
    ensure!(call(&old_client).await? == Code::PermissionDenied, "a useless bundle changed something");

    fs::write(&bundle, first.pem()? + &second.pem()?)?;
    until("the second authority is known", PATIENCE, async || {
        Ok((shown(&server, &new).await? == Code::PermissionDenied).then_some(()))
    })
    .await?;
    ensure!(call(&old_client).await? == Code::PermissionDenied, "the first authority is gone too soon");

    fs::write(&bundle, second.pem()?)?;
    until("the first authority is gone, on a connection that was open", PATIENCE, async || {
        Ok((call(&old_client).await? == Code::Unauthenticated).then_some(()))
    })
    .await?;
    ensure!(shown(&server, &old).await? == Code::Unavailable);
    ensure!(shown(&server, &new).await? == Code::PermissionDenied);

    // The server's own certificate: whoever trusts the new one alone gets in at last.
    let other = Plan::new()?;
    for file in ["tls.key", "tls.crt"] {
        fs::copy(other.dir().join(file), dir.join(file))?;
    }
    until("the new certificate is shown", PATIENCE, async || {
        let mut options = options(&server, Some(&new))?;
        options.connect_timeout = std::time::Duration::from_secs(5);
        Ok((outcome(options).await? == Code::PermissionDenied).then_some(()))
    })
    .await?;

    let made = stream.made();
    until("calls go on", PATIENCE, async || Ok((stream.made() > made).then_some(()))).await?;
    stream.end().await
}

/// A server with a unix socket.
async fn local_server() -> anyhow::Result<(Server, PathBuf)> {
    let mut plan = Plan::new()?;
    let socket = plan.dir().join("kms.sock");
    plan.more.push(("grpc", format!("unix_socket = '{}'", socket.display())));
    plan.bootstrap().await?;
    Ok((plan.start().await?, socket))
}

fn local_options(socket: &Path) -> Options {
    let mut options = Options::without_token(format!("unix://{}", socket.display()));
    (options.connect_timeout, options.timeout) = (PATIENCE, PATIENCE);
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_process_is_known_by_its_user_unless_it_has_a_token() -> anyhow::Result<()> {
    let (mut server, socket) = local_server().await?;
    ensure!(outcome(local_options(&socket)).await? == Code::PermissionDenied, "it is not known");
    let caller = format!("unix:{}", rustix::process::getuid().as_raw());
    ensure!(denied_callers(server.plan.dir())? == [caller], "{:?}", denied_callers(server.plan.dir())?);

    let mut with_token = local_options(&socket);
    with_token.access_token = Some(server.access_token()?.into());
    ensure!(outcome(with_token.clone()).await? == Code::NotFound, "the token did not decide");
    with_token.access_token = Some("kms_unknown".to_owned().into());
    ensure!(outcome(with_token).await? == Code::Unauthenticated, "the user took a bad token's place");

    let here = Environment { addr: format!("unix://{}", socket.display()), ..(*server).clone() };
    here.kms(["keys", "list"]).await?.text()?;
    let denied = here.with_token_file("").kms(["keys", "get", "absent"]).await?;
    ensure!(denied.code == Some(4) && denied.stderr.contains("denied"), "{denied:?}");

    server.running.terminate().await?;
    ensure!(!socket.exists(), "it was left behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not() -> anyhow::Result<()> {
    let (mut server, socket) = local_server().await?;
    // Another server, with a token and a store of its own, by mistake at the same place.
    let mut other = Plan::new()?;
    other.more.push(("grpc", format!("unix_socket = '{}'", socket.display())));
    other.bootstrap().await?;
    let refused = other.run(&["serve"]).await?;
    ensure!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
    ensure!(refused.stderr.contains("in use"), "{}", refused.stderr);
    ensure!(outcome(local_options(&socket)).await? == Code::PermissionDenied, "the live one was harmed");

    server.all_workers_ready().await?;
    let tree = server.running.tree()?;
    kill(tree.front().context("no front")?, Signal::KILL)?;
    server.running.ended().await?;
    ensure!(socket.exists(), "who is killed removes nothing");
    let command = server.plan.command(&["serve"])?;
    let (_running, _) = server.plan.launch(command, |path, _| path.to_owned()).await?;
    ensure!(outcome(local_options(&socket)).await? == Code::PermissionDenied, "it was not replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_a_certificate_and_names_the_half_that_is_missing() -> anyhow::Result<()> {
    let (spiffe, names) = (Authority::new("spiffe")?, Authority::new("names")?);
    let server = server(&spiffe, &names).await?;
    let certificate = spiffe.issue(&Says::uris(&[SPIFFE_ID]), server.plan.dir(), "caller")?;
    let (cert, key) =
        (certificate.cert_file.display().to_string(), certificate.key_file.display().to_string());
    let without_token = server.with_token_file("");
    let get = ["keys", "get", "absent"];
    let nothing = without_token.kms(get).await?;
    ensure!(nothing.code == Some(2) && nothing.stderr.contains("client certificate"), "{nothing:?}");
    let half = without_token.kms(get.into_iter().chain(["--client-cert", &cert])).await?;
    ensure!(half.code == Some(2) && half.stderr.contains("--client-key"), "{half:?}");
    let both = ["--client-cert", &cert, "--client-key", &key];
    let known = without_token.kms(get.into_iter().chain(both)).await?;
    ensure!(known.code == Some(4), "{known:?}");
    ensure!(denied_callers(server.plan.dir())? == [SPIFFE_ID], "{:?}", denied_callers(server.plan.dir())?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_client_certificate_is_shown_at_the_next_connection() -> anyhow::Result<()> {
    let (spiffe, names) = (Authority::new("spiffe")?, Authority::new("names")?);
    let server = server(&spiffe, &names).await?;
    let dir = server.plan.dir();
    let backend = server.addr.strip_prefix("https://").context("a URL")?.parse()?;
    let proxy = Proxy::to(vec![backend]).await?;
    let certificate = spiffe.issue(&Says::uris(&[SPIFFE_ID]), dir, "caller")?;
    let mut options = options(&server, Some(&certificate))?;
    options.addr = proxy.addr().to_string();
    let client = Client::connect(options).await?;
    ensure!(call(&client).await? == Code::PermissionDenied, "it is not known");

    let renewed = "spiffe://example.org/renewed";
    spiffe.issue(&Says::uris(&[renewed]), dir, "caller")?;
    ensure!(call(&client).await? == Code::PermissionDenied, "the connection is gone too soon");
    ensure!(denied_callers(dir)? == [SPIFFE_ID, SPIFFE_ID], "{:?}", denied_callers(dir)?);
    proxy.break_connections();
    until("the client has connected again", PATIENCE, async || {
        Ok((call(&client).await? == Code::PermissionDenied).then_some(()))
    })
    .await?;
    ensure!(
        denied_callers(dir)?.last().is_some_and(|caller| caller == renewed),
        "{:?}",
        denied_callers(dir)?
    );
    Ok(())
}
