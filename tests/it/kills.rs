//! Kills the server fifty times at random moments; acknowledged changes must survive.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use visage::proto::v1;

use crate::support::{Clients, quick_recipe, server::Home, utkface};

/// The number of kills; `VISAGE_KILLS=200` makes more.
fn n_kills() -> u64 {
    std::env::var("VISAGE_KILLS").map_or(50, |text| text.parse().unwrap())
}

/// The changes acknowledged by the server.
#[derive(Default)]
struct Acknowledged {
    faces: BTreeSet<String>,
    deleted: BTreeSet<String>,
    runs: BTreeSet<String>,
    /// The last acknowledged champion, and the one requested since.
    champion: Option<String>,
    requested: Option<String>,
}

type Shared = Arc<Mutex<Acknowledged>>;

#[tokio::test]
async fn what_was_acknowledged_survives_fifty_kills() {
    let home = Home::trained("").await;
    let acknowledged = Shared::default();
    {
        let server = home.serve().await;
        let mut c = server.clients().await;
        second_version(&mut c, &home).await;
        let collection = v1::CreateCollectionRequest {
            collection_id: "policies".to_owned(),
            embedding_space: "models/face/versions/1#embedding16".to_owned(),
            ..Default::default()
        };
        c.faces.create_collection(collection).await.unwrap();
        acknowledged.lock().unwrap().champion = Some("models/face/versions/1".to_owned());
        server.kill();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(50);
    for kill in 0..n_kills() {
        let server = home.serve().await;
        let c = server.clients().await;
        verify(&mut c.clone(), &acknowledged, kill).await;
        let mut work = tokio::task::JoinSet::new();
        for worker in 0..4 {
            work.spawn(enroll(c.clone(), Arc::clone(&acknowledged), format!("{kill}-{worker}")));
        }
        work.spawn(promote(c.clone(), Arc::clone(&acknowledged)));
        if kill % 3 == 0 {
            work.spawn(train(c.clone(), Arc::clone(&acknowledged), home.path("photos")));
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..500))).await;
        server.kill();
        work.join_all().await;
        if kill % 10 == 9 {
            let doctor = home.command(&["doctor", "--json"]).output().unwrap();
            assert!(doctor.status.success(), "after kill {kill}: {}", String::from_utf8_lossy(&doctor.stdout));
        }
    }
    let server = home.serve().await;
    verify(&mut server.clients().await, &acknowledged, n_kills()).await;
    assert!(server.stop().success());
    let acknowledged = acknowledged.lock().unwrap();
    let has_all = acknowledged.faces.len() > 100 && !acknowledged.runs.is_empty() && !acknowledged.deleted.is_empty();
    assert!(has_all, "the kills interrupted work of every kind");
}

async fn second_version(c: &mut Clients, home: &Home) {
    let request = v1::TrainRequest {
        model: "models/face".to_owned(),
        recipe: Some(quick_recipe()),
        sources: vec![utkface(&home.path("photos"))],
        request_id: String::new(),
    };
    let operation = c.visage.train(request).await.unwrap().into_inner();
    c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
}

/// Enrols faces and deletes some of them, until the server is gone.
async fn enroll(mut c: Clients, acknowledged: Shared, prefix: String) {
    for i in 0.. {
        let face_id = format!("{prefix}-{i}");
        let mut values = vec![1.0; 16];
        values[i % 16] = i as f32;
        let request = v1::EnrollFaceRequest {
            parent: "collections/policies".to_owned(),
            face_id,
            source: Some(v1::enroll_face_request::Source::Vector(v1::FaceVector { values, space: String::new() })),
            ..Default::default()
        };
        let Ok(face) = c.faces.enroll_face(request).await else { return };
        let name = face.into_inner().name;
        acknowledged.lock().unwrap().faces.insert(name.clone());
        if i % 5 == 4 {
            // From here on the face may be missing; once acknowledged, it must be.
            acknowledged.lock().unwrap().faces.remove(&name);
            if c.faces.delete_face(v1::DeleteFaceRequest { name: name.clone() }).await.is_err() {
                return;
            }
            acknowledged.lock().unwrap().deleted.insert(name);
        }
    }
}

/// Moves the champion alias until the server is gone.
async fn promote(mut c: Clients, acknowledged: Shared) {
    for i in 0.. {
        let version = format!("models/face/versions/{}", 1 + i % 2);
        acknowledged.lock().unwrap().requested = Some(version.clone());
        let request = v1::SetModelAliasRequest {
            name: "models/face".to_owned(),
            alias: "champion".to_owned(),
            version: version.clone(),
            ..Default::default()
        };
        if c.models.set_model_alias(request).await.is_err() {
            return;
        }
        let mut acknowledged = acknowledged.lock().unwrap();
        acknowledged.champion = Some(version);
        acknowledged.requested = None;
    }
}

async fn train(mut c: Clients, acknowledged: Shared, photos: std::path::PathBuf) {
    let request = v1::TrainRequest {
        model: "models/face".to_owned(),
        recipe: Some(quick_recipe()),
        sources: vec![utkface(&photos)],
        request_id: String::new(),
    };
    if let Ok(operation) = c.visage.train(request).await {
        acknowledged.lock().unwrap().runs.insert(operation.into_inner().name.replace("operations/", "trainingRuns/"));
    }
}

async fn verify(c: &mut Clients, acknowledged: &Shared, kill: u64) {
    let mut found = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListFacesRequest { parent: "collections/policies".to_owned(), page_size: 1000, page_token };
        let page = c.faces.list_faces(request).await.unwrap().into_inner();
        found.extend(page.faces.into_iter().map(|f| f.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let runs: Vec<String> = acknowledged.lock().unwrap().runs.iter().cloned().collect();
    {
        let acknowledged = acknowledged.lock().unwrap();
        let lost: Vec<_> = acknowledged.faces.difference(&found).collect();
        assert!(lost.is_empty(), "before kill {kill}: lost {lost:?}");
        let back: Vec<_> = acknowledged.deleted.intersection(&found).collect();
        assert!(back.is_empty(), "before kill {kill}: deleted and back: {back:?}");
    }
    for name in runs {
        let run = c.training.get_training_run(v1::GetTrainingRunRequest { name }).await.unwrap().into_inner();
        if run.state() == v1::RunState::Succeeded {
            let version = v1::GetModelVersionRequest { name: run.version };
            c.models.get_model_version(version).await.unwrap();
        }
    }
    let model = c.models.get_model(v1::GetModelRequest { name: "models/face".to_owned() }).await.unwrap().into_inner();
    let mut acknowledged = acknowledged.lock().unwrap();
    let champion = model.aliases["champion"].clone();
    let allowed = [acknowledged.champion.clone(), acknowledged.requested.clone()];
    assert!(allowed.contains(&Some(champion.clone())), "before kill {kill}: {champion} is not of {allowed:?}");
    acknowledged.champion = Some(champion);
    acknowledged.requested = None;
}
