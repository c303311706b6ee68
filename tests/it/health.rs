//! Tests that health is correct by service in both directions: while a server opens, while a version is broken, and
//! after the repair.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use visage::proto::v1;

use crate::support::{Channel, Clients, details, is_serving, quick_recipe, reason, server::Home, utkface};

const VISAGE: &str = "visage.v1.VisageService";
const FACES: &str = "visage.v1.FaceService";
/// The services that replace a broken version; it must not disable them.
const MENDING: [&str; 3] = ["visage.v1.ModelService", "visage.v1.TrainingService", "google.longrunning.Operations"];

/// Waits for this health of the whole server, of predictions and of faces. The services that repair must stay healthy.
async fn until(channel: &Channel, expected: [bool; 3]) {
    let started = Instant::now();
    loop {
        let mut found = [false; 3];
        for (found, service) in found.iter_mut().zip(["", VISAGE, FACES]) {
            *found = is_serving(channel, service).await;
        }
        for service in MENDING {
            assert!(is_serving(channel, service).await, "{service}");
        }
        if found == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{found:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_opens_answers_health_and_refuses_everything_else() {
    let Some(weights) = std::env::var_os("VISAGE_WEIGHTS") else {
        eprintln!("skipped: VISAGE_WEIGHTS does not name the published weights");
        return;
    };
    // Registering the weights takes some seconds, during which the server is not open.
    let home = Home::new(&format!("\n[models]\npublished_dir = {weights:?}\n"));
    let server = home.start();
    let channel = server.clients().await.channel;
    let mut states =
        HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status, 2);
    for service in ["", VISAGE, FACES].into_iter().chain(MENDING) {
        assert!(!is_serving(&channel, service).await, "{service}");
    }
    let mut c = server.clients().await;
    let refused = c.models.list_models(v1::ListModelsRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "UNAVAILABLE"), "{refused:?}");
    assert!(details(&refused).retry_info().is_some(), "{refused:?}");
    assert_eq!(states.message().await.unwrap().unwrap().status, 1);
    until(&channel, [true, true, true]).await;
    assert_eq!(c.models.list_models(v1::ListModelsRequest::default()).await.unwrap().into_inner().models.len(), 3);
    assert!(server.stop().success());
}

async fn train(c: &mut Clients, home: &Home, model: &str, recipe: v1::Recipe) -> v1::TrainingRun {
    let request = v1::TrainRequest {
        model: model.to_owned(),
        recipe: Some(recipe),
        sources: vec![utkface(&home.path("photos"))],
        request_id: String::new(),
    };
    let operation = c.visage.train(request).await.unwrap().into_inner();
    let run = c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
    assert_eq!(run.state(), v1::RunState::Succeeded, "{run:?}");
    run
}

async fn promote(c: &mut Clients, version: &str) {
    let request = v1::SetModelAliasRequest {
        name: "models/face".to_owned(),
        alias: "champion".to_owned(),
        version: version.to_owned(),
        ..Default::default()
    };
    c.models.set_model_alias(request).await.unwrap();
}

#[tokio::test]
async fn health_follows_the_champion_and_the_collections_versions_down_and_up() {
    let home = Home::trained("").await;
    {
        let server = home.serve().await;
        let mut c = server.clients().await;
        // It needs twice the memory of the first.
        let recipe = v1::Recipe { architecture: v1::Architecture::Resnet34.into(), ..quick_recipe() };
        assert_eq!(train(&mut c, &home, "models/face", recipe).await.version, "models/face/versions/2");
        promote(&mut c, "models/face/versions/2").await;
        let collection = v1::CreateCollectionRequest {
            collection_id: "people".to_owned(),
            embedding_space: "models/face".to_owned(),
            ..Default::default()
        };
        c.faces.create_collection(collection).await.unwrap();
        until(&c.channel, [true, true, true]).await;
        assert!(server.stop().success());
    }
    // The second version no longer fits; the first does.
    home.configure("[serving]\nmemory_budget_bytes = 60000000\n");
    let server = home.serve().await;
    let mut c = server.clients().await;
    until(&c.channel, [false, false, false]).await;
    // The repair: the previous version answers, and only the collection's version is still broken.
    promote(&mut c, "models/face/versions/1").await;
    until(&c.channel, [false, true, false]).await;
    // One usable collection is enough: one broken collection must not disable the others.
    let collection = v1::CreateCollectionRequest {
        collection_id: "others".to_owned(),
        embedding_space: "models/face/versions/1".to_owned(),
        ..Default::default()
    };
    c.faces.create_collection(collection).await.unwrap();
    until(&c.channel, [true, true, true]).await;
    let request = v1::LoadModelVersionRequest { name: "models/face/versions/2".to_owned() };
    assert_eq!(reason(&c.models.load_model_version(request).await.unwrap_err()), "DEVICE_MEMORY");
    until(&c.channel, [true, true, true]).await;
    c.faces.delete_collection(v1::DeleteCollectionRequest { name: "collections/others".to_owned() }).await.unwrap();
    until(&c.channel, [false, true, false]).await;
    c.faces.delete_collection(v1::DeleteCollectionRequest { name: "collections/people".to_owned() }).await.unwrap();
    until(&c.channel, [true, true, true]).await;
    assert!(server.stop().success());
}

#[tokio::test]
async fn a_broken_champion_is_mended_by_a_load() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    train(&mut c, &home, "models/other", quick_recipe()).await;
    assert!(server.stop().success());
    // Only one of the two fits, and the default is loaded second.
    home.configure("[serving]\nmemory_budget_bytes = 60000000\ndefault_model = \"models/other\"\n");
    let server = home.serve().await;
    let mut c = server.clients().await;
    until(&c.channel, [false, false, true]).await;
    let request =
        v1::SetModelAliasRequest { name: "models/face".to_owned(), alias: "champion".to_owned(), ..Default::default() };
    c.models.set_model_alias(request).await.unwrap();
    let load = v1::LoadModelVersionRequest { name: "models/other".to_owned() };
    // Versions without holders are unloaded in the background.
    while let Err(status) = c.models.load_model_version(load.clone()).await {
        assert_eq!(reason(&status), "DEVICE_MEMORY");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until(&c.channel, [true, true, true]).await;
    assert!(server.stop().success());
}

#[tokio::test]
async fn a_server_without_any_model_is_well() {
    let server = Home::new("").serve().await;
    until(&server.clients().await.channel, [true, true, true]).await;
}
