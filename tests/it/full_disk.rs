//! Tests that a full disk refuses writes with a typed error, and that everything else goes on and comes back by itself.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use visage::proto::v1;

use crate::support::{Channel, details, reason, server::Home};

/// More than other tests write or delete meanwhile.
const MARGIN_BYTES: u64 = 1 << 30;

async fn is_serving(channel: &Channel, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status == 1
}

fn enrolment(id: &str) -> v1::EnrollFaceRequest {
    let values = (0..16).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
    v1::EnrollFaceRequest {
        parent: "collections/policies".to_owned(),
        face_id: id.to_owned(),
        source: Some(v1::enroll_face_request::Source::Vector(v1::FaceVector { values, space: String::new() })),
        ..Default::default()
    }
}

/// Regression: after one full disk, nothing was written until a restart, and callers got `INTERNAL`.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers_without_a_restart() {
    let home = Home::trained("").await;
    let found = statvfs(home.path("data")).unwrap();
    let free_bytes = found.f_bavail * found.f_frsize;
    if free_bytes < 4 * MARGIN_BYTES {
        eprintln!("skipped: the disk has only {free_bytes} bytes left");
        return;
    }
    home.configure(&format!("\n[store]\nreserve_bytes = {}\n", free_bytes - MARGIN_BYTES));
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = v1::CreateCollectionRequest {
        collection_id: "policies".to_owned(),
        embedding_space: "models/face#embedding16".to_owned(),
        ..Default::default()
    };
    c.faces.create_collection(collection).await.unwrap();
    for id in ["a", "b"] {
        c.faces.enroll_face(enrolment(id)).await.unwrap();
    }
    let ballast = home.path("ballast");
    let filling = File::create(&ballast).unwrap();
    if fallocate(&filling, FallocateFlags::empty(), 0, 2 * MARGIN_BYTES).is_err() {
        eprintln!("skipped: the file system cannot reserve space");
        return;
    }
    let refused = c.faces.enroll_face(enrolment("c")).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "STORAGE_FULL"), "{refused:?}");
    assert!(details(&refused).retry_info().is_some(), "{refused:?}");
    let until = Instant::now() + Duration::from_secs(20);
    while is_serving(&c.channel, "").await {
        assert!(Instant::now() < until, "the health does not change");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_serving(&c.channel, "visage.store").await);
    assert!(is_serving(&c.channel, "visage.v1.VisageService").await, "predictions go on");
    let search = v1::FindSimilarRequest {
        collection: "collections/policies".to_owned(),
        query: Some(v1::find_similar_request::Query::Face("collections/policies/faces/a".to_owned())),
        k: 5,
        ..Default::default()
    };
    assert_eq!(c.visage.find_similar(search).await.unwrap().into_inner().matches.len(), 1);
    let deleted = v1::DeleteFaceRequest { name: "collections/policies/faces/b".to_owned() };
    c.faces.delete_face(deleted).await.unwrap();

    drop(filling);
    std::fs::remove_file(ballast).unwrap();
    while let Err(refused) = c.faces.enroll_face(enrolment("c")).await {
        assert_eq!(reason(&refused), "STORAGE_FULL", "{refused:?}");
        assert!(Instant::now() < until, "writes are not taken again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while !is_serving(&c.channel, "").await || !is_serving(&c.channel, "visage.store").await {
        assert!(Instant::now() < until, "the health does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(server.stop().success());
}
