//! `HsmService` over a core whose ports are fakes.

#![expect(clippy::expect_used, reason = "a test stops where its ground is missing")]

use std::{sync::Arc, time::Duration};

use kms_api_grpc::{HsmService, Services};
use kms_core::{
    fakes::{ManualClock, MemoryLog, MemoryStore, SoftHsm, World, administrator},
    hsm::{Half, KeyObject, Object},
    kms::Settings,
};
use kms_proto::v1::{
    self, hsm_object::State, hsm_service_client::HsmServiceClient, hsm_service_server::HsmServiceServer,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

type Service = HsmService<Arc<SoftHsm>, Arc<MemoryStore>, MemoryLog, Arc<ManualClock>>;

/// A service over a token that holds nothing but these.
async fn client(
    objects: impl IntoIterator<Item = (Vec<u8>, &'static str)>,
) -> HsmServiceClient<HsmServiceServer<Service>> {
    let world = World::default();
    for (cka_id, label) in objects {
        let half = Half::Private(KeyObject::AS_IT_MUST_BE);
        world.hsm.plant(Object { cka_id, label: label.to_owned(), half });
    }
    let kms = world.open(Settings::default()).await.expect("the service opens");
    HsmServiceClient::new(Services::new(&Arc::new(kms), Duration::from_secs(60)).hsm)
}

fn admin<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(administrator());
    request
}

fn wrong_field(status: &Status) -> String {
    let request = status.get_details_bad_request().expect("BadRequest");
    request.field_violations[0].field.clone()
}

#[tokio::test]
async fn what_is_wrong_in_a_request_is_named() {
    let mut client = client([(vec![1], "")]).await;
    for (field, request) in [
        ("state", v1::GetInventoryRequest { state: 99, ..Default::default() }),
        ("page_size", v1::GetInventoryRequest { page_size: -1, ..Default::default() }),
        ("page_token", v1::GetInventoryRequest { page_token: "x".into(), ..Default::default() }),
    ] {
        let status = client.get_inventory(admin(request)).await.expect_err(field);
        assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, field.to_owned()));
    }
    for (field, cka_id, note) in
        [("cka_id", vec![], "n"), ("cka_id", vec![1; 65], "n"), ("note", vec![1], "")]
    {
        let request = v1::QuarantineObjectRequest { cka_id, note: note.into() };
        let status = client.quarantine_object(admin(request)).await.expect_err(field);
        assert_eq!((status.code(), wrong_field(&status)), (Code::InvalidArgument, field.to_owned()));
    }
    let request = v1::QuarantineObjectRequest { cka_id: vec![2], note: "n".into() };
    assert_eq!(client.quarantine_object(admin(request)).await.expect_err("absent").code(), Code::NotFound);
}

#[tokio::test]
async fn objects_are_listed_page_by_page_in_one_state_and_counted_in_all() {
    let ids = [vec![], vec![0], vec![0, 0], vec![0x0f], vec![0xff; 64]];
    let foreign = ids.clone().into_iter().map(|id| (id, "somebody's"));
    let mut client = client(foreign.chain([(vec![0xaa; 16], "web/1")])).await;
    let mut request =
        v1::GetInventoryRequest { page_size: 2, state: State::Foreign.into(), ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = client.get_inventory(admin(request.clone())).await.expect("a page").into_inner();
        let counts: Vec<_> = page.counts.iter().map(|count| (count.state(), count.count)).collect();
        assert!(counts.contains(&(State::Foreign, 5)) && counts.contains(&(State::Orphan, 1)), "{counts:?}");
        listed.extend(page.objects.into_iter().map(|object| object.cka_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, ids);
}

#[tokio::test]
async fn a_quarantined_object_shows_who_put_it_on_record_and_why() {
    let mut client = client([(vec![0xaa; 16], "web/1")]).await;
    let request = v1::QuarantineObjectRequest { cka_id: vec![0xaa; 16], note: "left by a restore".into() };
    let made = client.quarantine_object(admin(request)).await.expect("on record").into_inner();
    assert_eq!(made.state(), State::Quarantined);
    assert_eq!((made.quarantine_note.as_str(), made.label.as_str()), ("left by a restore", "web/1"));
    assert!(made.quarantined_by == "access-token:admin" && made.quarantine_time.is_some(), "{made:?}");
    let page = client.get_inventory(admin(v1::GetInventoryRequest::default())).await.expect("a page");
    assert_eq!(page.into_inner().objects, [made]);
}
