//! The client against several servers, some of which go away.

use std::time::{Duration, Instant};

use kms_client::{Client, Error, Kind, Options, v1};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::server::Server;

async fn servers() -> [Server; 2] {
    [Server::start().await, Server::start().await]
}

fn options(servers: &[Server]) -> Options {
    let addrs: Vec<String> = servers.iter().map(Server::addr).collect();
    let ca_pem = servers.iter().flat_map(|server| server.ca_pem.clone()).collect();
    Options { ca_pem: Some(ca_pem), ..Options::new(addrs.join(","), "a-credential".into()) }
}

async fn client(servers: &[Server]) -> Client {
    Client::connect(options(servers)).await.expect("a server is there")
}

async fn sign(client: &Client) -> Result<v1::SignResponse, Error> {
    client.sign(v1::SignRequest::default()).await
}

fn seen(servers: &[Server]) -> Vec<usize> {
    servers.iter().map(|server| server.seen().len()).collect()
}

/// A call on a task of its own. The first of a client goes to the first replica.
fn waiting(client: &Client) -> JoinHandle<Result<v1::SignResponse, Error>> {
    let client = client.clone();
    tokio::spawn(async move { sign(&client).await })
}

/// Waits until `server` has seen a request.
async fn until_seen(server: &Server) {
    while server.seen().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn calls_are_spread_over_the_replicas() {
    let servers = servers().await;
    let client = client(&servers).await;
    for _ in 0..20 {
        sign(&client).await.expect("both work");
    }
    assert_eq!(seen(&servers), [10, 10]);
}

#[tokio::test]
async fn the_generated_clients_are_spread_too() {
    let servers = servers().await;
    let client = client(&servers).await;
    for _ in 0..20 {
        client.crypto().sign(v1::SignRequest::default()).await.expect("both work");
    }
    assert_eq!(seen(&servers), [10, 10]);
}

#[tokio::test]
async fn calls_go_on_when_a_replica_dies() {
    let mut servers = servers().await;
    let client = client(&servers).await;
    for call in 0..200 {
        if call == 20 {
            servers[0].die().await;
        }
        sign(&client).await.expect("the other works");
    }
    assert_eq!(seen(&servers), [10, 190]);
}

#[tokio::test]
async fn a_call_that_must_not_be_made_twice_goes_on_too_when_no_server_has_seen_it() {
    let mut servers = servers().await;
    let client = client(&servers).await;
    servers[0].stop().await;
    for _ in 0..20 {
        client.create_access_token(v1::CreateAccessTokenRequest::default()).await.expect("the other works");
    }
    // One may have come through while the first was saying goodbye.
    assert_eq!(seen(&servers).iter().sum::<usize>(), 20);
    assert!(seen(&servers)[0] <= 1, "{:?}", seen(&servers));
}

#[tokio::test]
async fn a_call_that_must_not_be_made_twice_is_not_repeated_when_a_server_has_seen_it() {
    let mut servers = servers().await;
    let client = client(&servers).await;
    servers[0].stall();
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.create_access_token(v1::CreateAccessTokenRequest::default()).await })
    };
    until_seen(&servers[0]).await;
    servers[0].die().await;
    let error = call.await.expect("no panic").expect_err("it was cut off");
    assert_eq!((error.kind(), error.never_sent()), (Kind::Unavailable, false), "{error}");
    assert_eq!(seen(&servers), [1, 0]);
}

#[tokio::test]
async fn a_call_that_may_be_made_twice_is_repeated_on_the_other_when_its_connection_is_cut() {
    let mut servers = servers().await;
    let client = client(&servers).await;
    servers[0].stall();
    let call = waiting(&client);
    until_seen(&servers[0]).await;
    servers[0].die().await;
    call.await.expect("no panic").expect("the other works");
    assert_eq!(seen(&servers), [1, 1]);
}

#[tokio::test]
async fn a_replica_that_cannot_serve_now_is_passed_over_at_once() {
    let servers = servers().await;
    let client = client(&servers).await;
    let begun = Instant::now();
    for server in &servers {
        // However the turns fall, the first attempt of one call meets the one failure of a server.
        server.fail_once(Status::unavailable("the HSM is away"));
        sign(&client).await.expect("the other works");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn how_long_one_replica_asks_to_wait_does_not_matter_while_another_works() {
    let servers = servers().await;
    let client = client(&servers).await;
    let mut details = ErrorDetails::with_error_info("FENCED", "kms", []);
    details.set_retry_info(Some(Duration::from_secs(3600)));
    servers[0].fail_once(Status::with_error_details(Code::Unavailable, "another will answer", details));
    for _ in 0..2 {
        sign(&client).await.expect("the other works");
    }
    assert_eq!(seen(&servers), [1, 2]);
}

#[tokio::test]
async fn what_one_replica_refuses_for_good_is_not_asked_of_another() {
    let servers = servers().await;
    let client = client(&servers).await;
    for server in &servers {
        server.fail_once(Status::permission_denied("no"));
    }
    assert_eq!(sign(&client).await.expect_err("denied").kind(), Kind::PermissionDenied);
    assert_eq!(seen(&servers).iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn when_all_are_down_the_error_says_so_within_the_deadline() {
    let mut servers = servers().await;
    let timeout = Duration::from_secs(1);
    let client = Client::connect(Options { timeout, ..options(&servers) }).await.expect("they are there");
    for server in &mut servers {
        server.stop().await;
    }
    let begun = Instant::now();
    let error = sign(&client).await.expect_err("nobody is there");
    assert!(begun.elapsed() <= timeout + Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.message().contains("localhost:") && error.message().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_replica_that_comes_back_is_used_again() {
    let mut servers = servers().await;
    let client = client(&servers).await;
    servers[0].stop().await;
    for _ in 0..20 {
        sign(&client).await.expect("the other works");
    }
    servers[0].resume().await;
    let used = async {
        while servers[0].seen().len() < 10 {
            sign(&client).await.expect("both work");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), used).await.expect("it is used again");
}

#[tokio::test]
async fn one_replica_that_is_there_is_enough_to_connect_to() {
    let mut servers = servers().await;
    servers[0].stop().await;
    let client = client(&servers).await;
    for _ in 0..4 {
        sign(&client).await.expect("the other works");
    }
    servers[0].resume().await;
    let used = async {
        while servers[0].seen().is_empty() {
            sign(&client).await.expect("both work");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), used).await.expect("it is connected to when it is there");
}

#[tokio::test]
async fn a_connection_to_none_names_each() {
    let mut servers = servers().await;
    for server in &mut servers {
        server.stop().await;
    }
    let error = Client::connect(options(&servers)).await.expect_err("nobody is there");
    for server in &servers {
        assert!(error.message().contains(&server.addr()), "{error}");
    }
}

#[tokio::test]
async fn a_replica_that_does_not_answer_gets_no_more_calls_and_its_own_goes_on_elsewhere() {
    let servers = servers().await;
    let timeout = Duration::from_secs(4);
    let client = Client::connect(Options { timeout, ..options(&servers) }).await.expect("they are there");
    servers[0].stall();
    let waiting = waiting(&client);
    until_seen(&servers[0]).await;
    for _ in 0..20 {
        sign(&client).await.expect("the other works");
    }
    assert_eq!(seen(&servers), [1, 20]);
    waiting.await.expect("no panic").expect("the other works");
    assert_eq!(seen(&servers), [1, 21]);
}

#[tokio::test]
async fn a_replica_whose_callers_give_up_is_passed_over() {
    let servers = servers().await;
    let client = client(&servers).await;
    sign(&client).await.expect("the first works");
    sign(&client).await.expect("the second works");
    servers[0].stall();
    let mut crypto = client.crypto();
    let given_up = tokio::time::timeout(Duration::from_millis(600), crypto.sign(v1::SignRequest::default()));
    assert!(given_up.await.is_err(), "it answers");
    let (one, other) = tokio::join!(sign(&client), sign(&client));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    assert_eq!(seen(&servers), [2, 3]);
}

#[tokio::test]
async fn a_replica_that_cannot_be_connected_to_in_time_fails_no_call() {
    let server = Server::start().await;
    // Takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gone = format!("localhost:{}", silent.local_addr().expect("it is bound").port());
    let servers = [server];
    let options = Options {
        addr: format!("{gone},{}", servers[0].addr()),
        connect_timeout: Duration::from_millis(500),
        timeout: Duration::from_secs(20),
        ..options(&servers)
    };
    let client = Client::connect(options).await.expect("one is there");
    let begun = Instant::now();
    let calls: Vec<_> = (0..100).map(|_| waiting(&client)).collect();
    for call in calls {
        call.await.expect("no panic").expect("the other works");
    }
    // Connections are tried one after the other: had they queued there, some would have waited for half their time.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        client.create_access_token(v1::CreateAccessTokenRequest::default()).await.expect("it was never sent");
    }
}
