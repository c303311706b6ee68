//! Tests that a full or failing disk refuses writes with a typed error, and that everything else goes on and comes back
//! by itself.

use std::{
    collections::BTreeSet,
    fs::File,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    process::{Pid, Resource, Rlimit, prlimit},
};
use tonic::Code;
use visage::proto::v1;

use crate::support::{details, reason, server::Home, vector_enrolment};

/// More than other tests write or delete meanwhile.
const MARGIN_BYTES: u64 = 1 << 30;

const COLLECTION: &str = "collections/policies";

fn enrolment(id: &str) -> v1::EnrollFaceRequest {
    vector_enrolment(COLLECTION, id, (0..16).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect())
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
    c.create_collection("policies").await;
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
    while c.is_serving("").await {
        assert!(Instant::now() < until, "the health does not change");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!c.is_serving("visage.store").await);
    assert!(c.is_serving("visage.v1.VisageService").await, "predictions go on");
    let search = v1::FindSimilarRequest {
        collection: COLLECTION.to_owned(),
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
    while !c.is_serving("").await || !c.is_serving("visage.store").await {
        assert!(Instant::now() < until, "the health does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(server.stop().success());
}

/// A limit on file sizes makes each write fail as a failing disk does. It comes and goes, and hits every stage.
#[tokio::test]
async fn a_disk_that_fails_and_works_by_turns_loses_nothing_and_needs_no_restart() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    c.create_collection("policies").await;
    let pid = Pid::from_raw(server.pid().cast_signed());
    let limit = |n_bytes| prlimit(pid, Resource::Fsize, Rlimit { current: n_bytes, maximum: None }).unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..40_u64 {
        limit(if round % 4 == 3 { Some(round / 4 * 300_000) } else { None });
        let until = Instant::now() + Duration::from_millis(150);
        for i in 0.. {
            let id = format!("f{round:02}-{i}");
            match c.faces.enroll_face(enrolment(&id)).await {
                Ok(_) => drop(acknowledged.insert(format!("collections/policies/faces/{id}"))),
                Err(refused) => assert_eq!(reason(&refused), "UNAVAILABLE", "{refused:?}"),
            }
            if Instant::now() > until {
                break;
            }
        }
    }
    limit(None);
    let until = Instant::now() + Duration::from_secs(40);
    while let Err(refused) = c.faces.enroll_face(enrolment("last")).await {
        assert_eq!(reason(&refused), "UNAVAILABLE", "{refused:?}");
        assert!(Instant::now() < until, "writes are not taken again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    acknowledged.insert("collections/policies/faces/last".to_owned());
    let request = v1::ListFacesRequest { parent: COLLECTION.to_owned(), page_size: 1_000, ..Default::default() };
    let mut listed = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListFacesRequest { page_token: page_token.clone(), ..request.clone() };
        let page = c.faces.list_faces(request).await.unwrap().into_inner();
        listed.extend(page.faces.into_iter().map(|face| face.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(listed == acknowledged, "{} are listed, {} were acknowledged", listed.len(), acknowledged.len());
    assert!(server.stop().success());
    let examined = home.command(&["doctor"]).output().unwrap();
    assert!(examined.status.success(), "{}", String::from_utf8_lossy(&examined.stdout));
}
