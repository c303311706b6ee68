//! Tests the main workflow: train, watch, predict, enrol, search, promote under load, restart.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_stream::StreamExt;
use visage::proto::{
    longrunning as lro,
    v1::{self, prediction::Result as Answer, watch_training_run_response::Event},
};

use crate::support::{
    Clients, faces, quick_recipe, reason,
    server::{Home, Server, VISAGE},
    utkface,
};

const PORTRAIT: &[u8] = include_bytes!("../fixtures/portrait.jpg");

async fn predict(c: &mut Clients, model: &str) -> v1::PredictResponse {
    let request = v1::PredictRequest { model: model.to_owned(), image: PORTRAIT.into(), ..Default::default() };
    c.visage.predict(request).await.unwrap().into_inner()
}

fn enroll(face: &str, image: Vec<u8>) -> v1::EnrollFaceRequest {
    v1::EnrollFaceRequest {
        parent: "collections/policies".to_owned(),
        face_id: face.to_owned(),
        source: Some(v1::enroll_face_request::Source::Image(image.into())),
        subject: format!("subject of {face}"),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_main_job_end_to_end() {
    let home = Home::new("");
    let photos = home.path("photos");
    faces::write_utkface(&photos, 0, 64);
    let bad = faces::write_bad_files(&photos);
    let server = home.serve().await;
    let mut c = server.clients().await;

    // Train, and watch the run from the queue to the end.
    let train = v1::TrainRequest {
        model: "models/face".to_owned(),
        recipe: Some(quick_recipe()),
        sources: vec![utkface(&photos)],
        request_id: "first".to_owned(),
    };
    let operation = c.visage.train(train.clone()).await.unwrap().into_inner();
    assert_eq!(c.visage.train(train).await.unwrap().into_inner().name, operation.name);
    let run = operation.name.replace("operations/", "trainingRuns/");
    let watch = v1::WatchTrainingRunRequest { name: run.clone(), after_sequence: 0 };
    let events: Vec<_> =
        c.training.watch_training_run(watch).await.unwrap().into_inner().map(|e| e.unwrap()).collect().await;
    assert!(events.windows(2).all(|w| w[0].sequence < w[1].sequence));
    let data = events.iter().find_map(|e| match &e.event {
        Some(Event::Data(d)) => Some(d.clone()),
        _ => None,
    });
    let data = data.expect("the data's report");
    let rejected: Vec<&str> = data.rejected_examples.iter().map(|r| r.name.as_str()).collect();
    assert!(rejected.iter().all(|name| bad.iter().any(|b| name.ends_with(b))), "{rejected:?}");
    assert!(data.rejected.values().sum::<i64>() >= 3, "{data:?}");
    assert!(events.iter().any(|e| matches!(&e.event, Some(Event::Progress(p)) if p.step > 0 && p.n_steps > 0)));
    let Some(Event::Ended(ended)) = &events.last().unwrap().event else { panic!("no end") };
    assert_eq!(ended.state(), v1::RunState::Succeeded, "{ended:?}");
    assert!(ended.metrics.contains_key("age.mae"), "{:?}", ended.metrics);
    let wait = lro::WaitOperationRequest { name: operation.name.clone(), timeout: None };
    assert!(c.operations.wait_operation(wait).await.unwrap().into_inner().done);

    // The first version is the champion, and answers both heads.
    let answer = predict(&mut c, "models/face").await;
    assert_eq!(answer.model_version, "models/face/versions/1");
    let [age, gender] = &answer.predictions[..] else { panic!("{answer:?}") };
    let Some(Answer::Regression(age)) = &age.result else { panic!("{age:?}") };
    assert_eq!(age.unit, "years");
    assert!(age.lower.zip(age.upper).is_none_or(|(l, u)| l <= age.value && age.value <= u));
    let Some(Answer::Classification(gender)) = &gender.result else { panic!("{gender:?}") };
    assert!(gender.classes.iter().map(|c| c.probability).sum::<f64>() - 1.0 < 1e-5);

    // Enrol photos and search: the same face is the first match, the other is not.
    let space = v1::CreateCollectionRequest {
        collection_id: "policies".to_owned(),
        embedding_space: "models/face@champion".to_owned(),
        ..Default::default()
    };
    c.faces.create_collection(space).await.unwrap();
    c.faces.enroll_face(enroll("astronaut", PORTRAIT.to_vec())).await.unwrap();
    let others: Vec<_> = (0..8).map(|i| faces::Person::of(100 + i).photo(0, image::ImageFormat::Png)).collect();
    let requests = others.iter().enumerate().map(|(i, image)| v1::StreamEnrollFacesRequest {
        request: Some(enroll(&format!("other-{i}"), image.clone())),
        correlation_id: i.to_string(),
    });
    let bad = v1::StreamEnrollFacesRequest {
        request: Some(enroll("bad", b"text".to_vec())),
        correlation_id: "bad".to_owned(),
    };
    let requests: Vec<_> = requests.chain([bad]).collect();
    let answers: Vec<_> = c
        .faces
        .stream_enroll_faces(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner()
        .map(|a| a.unwrap())
        .collect()
        .await;
    let ids: Vec<_> = answers.iter().map(|a| a.correlation_id.as_str()).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "bad"], "in order");
    assert!(matches!(answers[8].result, Some(v1::stream_enroll_faces_response::Result::Error(_))));
    let best = similar(&mut c, 3).await;
    assert_eq!(best[0].face.as_ref().unwrap().name, "collections/policies/faces/astronaut");
    assert!(best[0].score > 0.999, "{}", best[0].score);

    // A deleted face is never returned again.
    c.faces.delete_face(v1::DeleteFaceRequest { name: "collections/policies/faces/other-0".to_owned() }).await.unwrap();
    let all = similar(&mut c, 100).await;
    assert_eq!(all.len(), 8);
    assert!(all.iter().all(|m| !m.face.as_ref().unwrap().name.ends_with("other-0")));

    promote_under_load(&mut c, &home).await;

    // Everything survives a restart.
    assert!(server.stop().success(), "an orderly end");
    let server = home.serve().await;
    let mut c = server.clients().await;
    assert_eq!(predict(&mut c, "models/face").await.model_version, "models/face/versions/2");
    assert_eq!(similar(&mut c, 100).await.len(), 8);
    let again =
        c.operations.get_operation(lro::GetOperationRequest { name: operation.name }).await.unwrap().into_inner();
    assert!(matches!(again.result, Some(lro::operation::Result::Response(_))));
    clean(server, &home);
}

async fn similar(c: &mut Clients, k: i32) -> Vec<v1::SimilarFace> {
    let request = v1::FindSimilarRequest {
        collection: "collections/policies".to_owned(),
        query: Some(v1::find_similar_request::Query::Image(PORTRAIT.into())),
        k,
        ..Default::default()
    };
    c.visage.find_similar(request).await.unwrap().into_inner().matches
}

/// Trains a second version from the first, and moves the alias back and forth during calls; none fails.
async fn promote_under_load(c: &mut Clients, home: &Home) {
    let recipe = v1::Recipe {
        warm_start: Some(v1::recipe::WarmStart::Version("models/face@champion".to_owned())),
        ..quick_recipe()
    };
    let train = v1::TrainRequest {
        model: "models/face".to_owned(),
        recipe: Some(recipe),
        sources: vec![utkface(&home.path("photos"))],
        request_id: String::new(),
    };
    let operation = c.visage.train(train).await.unwrap().into_inner();
    let run = c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
    assert_eq!(run.version, "models/face/versions/2", "{run:?}");
    assert_eq!(predict(c, "models/face").await.model_version, "models/face/versions/1", "not promoted by itself");

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (mut c, stop, answered) = (c.clone(), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    predict(&mut c, "models/face").await;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let versions = ["models/face/versions/1", "models/face/versions/2"];
    for swap in 0..6 {
        let before = answered.load(Ordering::Relaxed);
        let request = v1::SetModelAliasRequest {
            name: "models/face".to_owned(),
            alias: "champion".to_owned(),
            version: versions[(swap + 1) % 2].to_owned(),
            expected_version: Some(versions[swap % 2].to_owned()),
            request_id: String::new(),
        };
        c.models.set_model_alias(request).await.unwrap();
        while answered.load(Ordering::Relaxed) < before + 8 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    let last = v1::SetModelAliasRequest {
        name: "models/face".to_owned(),
        alias: "champion".to_owned(),
        version: versions[1].to_owned(),
        ..Default::default()
    };
    c.models.set_model_alias(last).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no call fails during swaps");
    }
}

fn clean(server: Server, home: &Home) {
    assert!(server.stop().success());
    let doctor = home.command(&["doctor", "--json"]).output().unwrap();
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
    let log = home.log();
    assert!(!log.contains(" ERROR "), "{log}");
}

#[tokio::test]
async fn a_stream_of_photos_keeps_its_order_and_its_errors_apart() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let requests = (0..40).map(|i| {
        let image = if i % 7 == 3 { b"text".to_vec() } else { PORTRAIT.to_vec() };
        let request = v1::PredictRequest { image: image.into(), heads: vec!["age".to_owned()], ..Default::default() };
        v1::StreamPredictRequest { request: Some(request), correlation_id: i.to_string() }
    });
    let requests: Vec<_> = requests.collect();
    let answers: Vec<_> = c
        .visage
        .stream_predict(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner()
        .map(|a| a.unwrap())
        .collect()
        .await;
    assert_eq!(answers.len(), 40);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.correlation_id, i.to_string());
        let failed = matches!(answer.result, Some(v1::stream_predict_response::Result::Error(_)));
        assert_eq!(failed, i % 7 == 3, "{answer:?}");
    }
}

#[tokio::test]
async fn a_run_can_be_cancelled_and_a_killed_child_is_a_failed_run() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let mut recipe = quick_recipe();
    recipe.stages[0].epochs = 10_000;
    let train = v1::TrainRequest {
        model: "models/long".to_owned(),
        recipe: Some(recipe),
        sources: vec![utkface(&home.path("photos"))],
        request_id: String::new(),
    };

    let operation = c.visage.train(train.clone()).await.unwrap().into_inner();
    progressed(&mut c, &operation.name).await;
    let early = lro::DeleteOperationRequest { name: operation.name.clone() };
    assert_eq!(reason(&c.operations.delete_operation(early).await.unwrap_err()), "OPERATION_RUNNING");
    c.operations.cancel_operation(lro::CancelOperationRequest { name: operation.name.clone() }).await.unwrap();
    let run = c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
    assert_eq!(run.state(), v1::RunState::Cancelled, "{run:?}");

    let operation = c.visage.train(train.clone()).await.unwrap().into_inner();
    progressed(&mut c, &operation.name).await;
    let killed = std::process::Command::new("pkill").args(["-9", "-P", &server.pid().to_string()]).status().unwrap();
    assert!(killed.success());
    let run = c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
    assert_eq!(run.state(), v1::RunState::Failed, "{run:?}");
    assert!(run.error.as_ref().unwrap().message.contains("signal 9"), "{run:?}");
    // Serving was not affected.
    predict(&mut c, "models/face").await;

    // A stopping server ends its run and records that; a queued run stays queued.
    let operation = c.visage.train(train.clone()).await.unwrap().into_inner();
    progressed(&mut c, &operation.name).await;
    let waiting = c.visage.train(train).await.unwrap().into_inner();
    assert!(server.stop().success());
    let server = home.serve().await;
    let mut c = server.clients().await;
    let run = c.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
    assert_eq!(run.state(), v1::RunState::Failed, "{run:?}");
    assert!(run.error.unwrap().message.contains("server stopped"));
    progressed(&mut c, &waiting.name).await;
    c.operations.cancel_operation(lro::CancelOperationRequest { name: waiting.name }).await.unwrap();
}

async fn progressed(c: &mut Clients, operation: &str) {
    let watch =
        v1::WatchTrainingRunRequest { name: operation.replace("operations/", "trainingRuns/"), after_sequence: 0 };
    let mut events = c.training.watch_training_run(watch).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        match event.event {
            Some(Event::Progress(_)) => return,
            Some(Event::Ended(run)) => panic!("ended early: {run:?}"),
            _ => {}
        }
    }
    panic!("no progress");
}

#[test]
fn a_training_process_steps_back_behind_everything_else() {
    let mut worker = Command::new(VISAGE).arg("worker").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let of_worker = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", worker.id())).unwrap();
    let started = Instant::now();
    // Its last step.
    while of_worker("oom_score_adj").trim() != "1000" {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not step back");
        std::thread::sleep(Duration::from_millis(10));
    }
    let stat = of_worker("stat");
    let after_name: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let (nice, policy) = (after_name[16], after_name[38]);
    const SCHED_IDLE: &str = "5";
    assert_eq!((nice, policy), ("19", SCHED_IDLE));
    drop(worker.stdin.take());
    worker.wait().unwrap();
}
