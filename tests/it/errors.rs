//! Tests the whole table of errors over the wire: each error has its code, reason and detail, and the server answers
//! the next call.

use std::{collections::BTreeMap, fs, future::Future, pin::Pin};

use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tonic::{Code, Request, Status};
use visage::proto::{longrunning as lro, v1};

use crate::support::{Clients, details, quick_recipe, reason, server::Home, utkface};

const PORTRAIT: &[u8] = include_bytes!("../fixtures/portrait.jpg");

/// What an error must have besides code and reason.
enum Detail {
    /// `BadRequest` names this field.
    Field(&'static str),
    /// `ResourceInfo` names this resource.
    Resource(&'static str),
    /// `RetryInfo` is present.
    Retry,
    /// Nothing.
    None,
}

type Refusal = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

struct Row {
    name: &'static str,
    call: Box<dyn FnOnce(Clients) -> Refusal + Send>,
    code: Code,
    reason: &'static str,
    detail: Detail,
}

/// Makes a row whose call is an async block with its own clients.
macro_rules! row {
    ($rows:ident, $name:expr, |$c:ident| $call:expr, $code:ident, $reason:expr, $detail:expr) => {
        $rows.push(Row {
            name: $name,
            call: Box::new(move |#[allow(unused_mut)] mut $c| Box::pin(async move { $call.await.map(drop) })),
            code: Code::$code,
            reason: $reason,
            detail: $detail,
        })
    };
}

fn predict(image: impl Into<bytes::Bytes>) -> v1::PredictRequest {
    v1::PredictRequest { model: "models/face".to_owned(), image: image.into(), ..Default::default() }
}

fn predict_with(model: &str) -> v1::PredictRequest {
    v1::PredictRequest { model: model.to_owned(), image: PORTRAIT.into(), ..Default::default() }
}

fn find(query: v1::find_similar_request::Query, k: i32) -> v1::FindSimilarRequest {
    v1::FindSimilarRequest {
        collection: "collections/policies".to_owned(),
        query: Some(query),
        k,
        ..Default::default()
    }
}

fn import(weights_path: &str) -> v1::ImportModelVersionRequest {
    v1::ImportModelVersionRequest {
        parent: "models/imported".to_owned(),
        weights_path: weights_path.to_owned(),
        architecture: v1::Architecture::Resnet18.into(),
        heads: vec![quick_recipe().heads[0].clone()],
        image_size_px: 32,
        ..Default::default()
    }
}

fn vector(values: Vec<f32>, space: &str) -> v1::find_similar_request::Query {
    v1::find_similar_request::Query::Embedding(v1::Embedding { values, space: space.to_owned() })
}

fn enroll(face: &str, values: Vec<f32>) -> v1::EnrollFaceRequest {
    v1::EnrollFaceRequest {
        parent: "collections/policies".to_owned(),
        face_id: face.to_owned(),
        source: Some(v1::enroll_face_request::Source::Vector(v1::FaceVector { values, space: String::new() })),
        ..Default::default()
    }
}

fn train(path: &std::path::Path) -> v1::TrainRequest {
    v1::TrainRequest {
        model: "models/other".to_owned(),
        recipe: Some(quick_recipe()),
        sources: vec![utkface(path)],
        request_id: String::new(),
    }
}

/// Makes a PNG whose header declares `side` x `side` pixels, without the pixels.
fn png_header(side: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(side.to_be_bytes());
    chunk.extend(side.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&chunk);
    png.extend(crc32fast::hash(&chunk).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

fn axis(i: usize) -> Vec<f32> {
    let mut v = vec![0.0; 512];
    v[i] = 1.0;
    v
}

async fn prepare(c: &mut Clients) {
    let request = v1::CreateCollectionRequest {
        collection_id: "policies".to_owned(),
        embedding_space: "models/face".to_owned(),
        ..Default::default()
    };
    c.faces.create_collection(request).await.unwrap();
    for i in 0..3 {
        c.faces.enroll_face(enroll(&format!("f{i}"), axis(i))).await.unwrap();
    }
}

#[allow(clippy::too_many_lines)]
fn rows(home: &Home, run: String) -> Vec<Row> {
    use Detail::{Field, Resource};
    let mut rows = Vec::new();

    row!(
        rows,
        "an empty image",
        |c| c.visage.predict(predict(vec![])),
        InvalidArgument,
        "FIELD_INVALID",
        Field("image")
    );
    row!(
        rows,
        "a truncated image",
        |c| c.visage.predict(predict(PORTRAIT[..PORTRAIT.len() / 2].to_vec())),
        InvalidArgument,
        "IMAGE_UNREADABLE",
        Field("image")
    );
    row!(
        rows,
        "10^9 pixels",
        |c| c.visage.predict(predict(png_header(31_623))),
        InvalidArgument,
        "IMAGE_TOO_LARGE",
        Field("image")
    );
    row!(
        rows,
        "20 MB",
        |c| c.visage.predict(predict(vec![0xff; 20_000_000])),
        ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        Detail::None
    );
    row!(
        rows,
        "text as an image",
        |c| c.visage.predict(predict(b"a portrait, in words".to_vec())),
        InvalidArgument,
        "IMAGE_FORMAT_UNSUPPORTED",
        Field("image")
    );
    row!(
        rows,
        "an unknown head",
        |c| c.visage.predict(v1::PredictRequest { heads: vec!["bmi".to_owned()], ..predict(PORTRAIT) }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("heads")
    );

    row!(
        rows,
        "an unknown model",
        |c| c.visage.predict(predict_with("models/nobody")),
        NotFound,
        "MODEL_NOT_FOUND",
        Resource("models/nobody")
    );
    row!(
        rows,
        "an unknown version",
        |c| c.visage.predict(predict_with("models/face/versions/99")),
        NotFound,
        "MODEL_VERSION_NOT_FOUND",
        Resource("models/face/versions/99")
    );
    row!(
        rows,
        "an unknown alias",
        |c| c.visage.predict(predict_with("models/face@canary")),
        NotFound,
        "MODEL_ALIAS_NOT_FOUND",
        Resource("models/face@canary")
    );
    row!(
        rows,
        "a model name of a hundred kilobytes",
        |c| c.visage.predict(predict_with(&format!("models/{}", "a".repeat(100_000)))),
        InvalidArgument,
        "FIELD_INVALID",
        Field("model")
    );
    row!(
        rows,
        "a malformed model name",
        |c| c.visage.predict(predict_with("face v1")),
        InvalidArgument,
        "FIELD_INVALID",
        Field("model")
    );

    row!(
        rows,
        "an alias race",
        |c| c.models.set_model_alias(v1::SetModelAliasRequest {
            name: "models/face".to_owned(),
            alias: "champion".to_owned(),
            version: "models/face/versions/1".to_owned(),
            expected_version: Some("models/face/versions/7".to_owned()),
            request_id: String::new(),
        }),
        FailedPrecondition,
        "ALIAS_MOVED",
        Detail::None
    );
    row!(
        rows,
        "deleting a version in use",
        |c| c.models.delete_model_version(v1::DeleteModelVersionRequest { name: "models/face/versions/1".to_owned() }),
        FailedPrecondition,
        "IN_USE",
        Resource("models/face/versions/1")
    );
    row!(
        rows,
        "unloading a version in use",
        |c| c.models.unload_model_version(v1::UnloadModelVersionRequest { name: "models/face/versions/1".to_owned() }),
        FailedPrecondition,
        "IN_USE",
        Resource("models/face/versions/1")
    );

    row!(
        rows,
        "a reused request id",
        |c| async move {
            let mut c = c;
            let with_id = |face: &str| v1::EnrollFaceRequest { request_id: "once".to_owned(), ..enroll(face, axis(9)) };
            let first = c.faces.enroll_face(with_id("once")).await.unwrap().into_inner();
            let again = c.faces.enroll_face(with_id("once")).await.unwrap().into_inner();
            assert_eq!(first, again, "the same id and body answer the same");
            c.faces.enroll_face(with_id("other")).await
        },
        AlreadyExists,
        "REQUEST_ID_REUSED",
        Detail::None
    );
    row!(
        rows,
        "a replay of an enrolment whose face was deleted",
        |c| async move {
            let mut c = c;
            let request = v1::EnrollFaceRequest { request_id: "gone".to_owned(), ..enroll("gone", axis(9)) };
            let name = c.faces.enroll_face(request.clone()).await.unwrap().into_inner().name;
            c.faces.delete_face(v1::DeleteFaceRequest { name }).await.unwrap();
            c.faces.enroll_face(request).await
        },
        FailedPrecondition,
        "FACE_ERASED",
        Detail::None
    );
    row!(
        rows,
        "a display name of a megabyte",
        |c| c.faces.create_collection(v1::CreateCollectionRequest {
            collection_id: "named".to_owned(),
            embedding_space: "models/face".to_owned(),
            display_name: "x".repeat(1 << 20),
            ..Default::default()
        }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("display_name")
    );
    row!(
        rows,
        "bytes that are no message of the method",
        |c| async move {
            // Its first field is a message with bytes that are not UTF-8; Predict has a string there.
            let inner = v1::PredictRequest { image: vec![0xff; 8].into(), ..v1::PredictRequest::default() };
            let wrong = v1::StreamPredictRequest { request: Some(inner), correlation_id: String::new() };
            let mut grpc = tonic::client::Grpc::new(c.channel);
            grpc.ready().await.unwrap();
            let path = http::uri::PathAndQuery::from_static("/visage.v1.VisageService/Predict");
            let codec = tonic_prost::ProstCodec::<_, v1::PredictResponse>::default();
            grpc.unary(Request::new(wrong), path, codec).await
        },
        InvalidArgument,
        "FIELD_INVALID",
        Field("request")
    );
    row!(
        rows,
        "a taken face id",
        |c| c.faces.enroll_face(enroll("f0", axis(4))),
        AlreadyExists,
        "RESOURCE_EXISTS",
        Resource("collections/policies/faces/f0")
    );
    row!(
        rows,
        "a taken collection id",
        |c| c.faces.create_collection(v1::CreateCollectionRequest {
            collection_id: "policies".to_owned(),
            embedding_space: "models/face".to_owned(),
            ..Default::default()
        }),
        AlreadyExists,
        "RESOURCE_EXISTS",
        Resource("collections/policies")
    );
    row!(
        rows,
        "a layer that the model lacks",
        |c| c.faces.create_collection(v1::CreateCollectionRequest {
            collection_id: "more".to_owned(),
            embedding_space: "models/face#pool5".to_owned(),
            ..Default::default()
        }),
        FailedPrecondition,
        "UNSUPPORTED_BY_MODEL",
        Resource("models/face/versions/1")
    );
    row!(
        rows,
        "too many labels",
        |c| c.faces.enroll_face(v1::EnrollFaceRequest {
            labels: (0..100).map(|i| (format!("k{i}"), String::new())).collect::<BTreeMap<_, _>>(),
            ..enroll("labelled", axis(4))
        }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("labels")
    );

    row!(
        rows,
        "a NaN in a vector",
        |c| {
            let mut values = axis(0);
            values[100] = f32::NAN;
            c.visage.find_similar(find(vector(values, ""), 1))
        },
        InvalidArgument,
        "FIELD_INVALID",
        Field("embedding")
    );
    row!(
        rows,
        "a vector of the wrong length",
        |c| c.visage.find_similar(find(vector(vec![1.0; 3], ""), 1)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("embedding")
    );
    row!(
        rows,
        "a vector of zeros",
        |c| c.visage.find_similar(find(vector(vec![0.0; 512], ""), 1)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("embedding")
    );
    row!(
        rows,
        "a vector of another space",
        |c| c.visage.find_similar(find(vector(axis(0), "models/face/versions/2#embedding512"), 1)),
        FailedPrecondition,
        "EMBEDDING_SPACE_MISMATCH",
        Detail::None
    );
    row!(
        rows,
        "k of 0",
        |c| c.visage.find_similar(find(vector(axis(0), ""), 0)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("k")
    );
    row!(
        rows,
        "k below 0",
        |c| c.visage.find_similar(find(vector(axis(0), ""), -1)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("k")
    );
    row!(
        rows,
        "k of a million",
        |c| c.visage.find_similar(find(vector(axis(0), ""), 1_000_000)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("k")
    );
    row!(
        rows,
        "a threshold that is no number",
        |c| c.visage.find_similar(v1::FindSimilarRequest { min_score: Some(f32::NAN), ..find(vector(axis(0), ""), 1) }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("min_score")
    );
    row!(
        rows,
        "no query",
        |c| c.visage.find_similar(v1::FindSimilarRequest {
            collection: "collections/policies".to_owned(),
            k: 1,
            ..Default::default()
        }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("query")
    );
    row!(
        rows,
        "an unknown collection",
        |c| c.visage.find_similar(v1::FindSimilarRequest {
            collection: "collections/nothing".to_owned(),
            ..find(vector(axis(0), ""), 1)
        }),
        NotFound,
        "COLLECTION_NOT_FOUND",
        Resource("collections/nothing")
    );
    row!(
        rows,
        "an unknown face",
        |c| c.faces.get_face(v1::GetFaceRequest { name: "collections/policies/faces/nobody".to_owned() }),
        NotFound,
        "FACE_NOT_FOUND",
        Resource("collections/policies/faces/nobody")
    );
    row!(
        rows,
        "a malformed face name",
        |c| c.faces.delete_face(v1::DeleteFaceRequest { name: "collections/policies".to_owned() }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("name")
    );

    row!(
        rows,
        "a deletion by an empty subject",
        |c| c.faces.delete_faces(v1::DeleteFacesRequest { parent: "collections/-".to_owned(), subject: String::new() }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("subject")
    );

    row!(
        rows,
        "a made-up page token",
        |c| c.faces.list_faces(v1::ListFacesRequest {
            parent: "collections/policies".to_owned(),
            page_token: "bmV4dCBwYWdl".to_owned(),
            ..Default::default()
        }),
        InvalidArgument,
        "PAGE_TOKEN_INVALID",
        Field("page_token")
    );
    row!(
        rows,
        "another list's page token",
        |c| async move {
            let mut c = c;
            let page =
                v1::ListFacesRequest { parent: "collections/policies".to_owned(), page_size: 1, ..Default::default() };
            let token = c.faces.list_faces(page).await.unwrap().into_inner().next_page_token;
            assert!(!token.is_empty());
            c.faces.list_collections(v1::ListCollectionsRequest { page_token: token, ..Default::default() }).await
        },
        InvalidArgument,
        "PAGE_TOKEN_INVALID",
        Field("page_token")
    );
    row!(
        rows,
        "a negative page size",
        |c| c.models.list_models(v1::ListModelsRequest { page_size: -1, ..Default::default() }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("page_size")
    );

    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    let link = home.path("photos").join("link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let dots = home.path("photos").join("..").join("outside");
    let absent = home.path("photos").join("absent");
    row!(
        rows,
        "a path outside the roots",
        |c| c.visage.train(train(&outside)),
        InvalidArgument,
        "PATH_OUTSIDE_ROOTS",
        Field("sources[0].utkface.path")
    );
    row!(
        rows,
        "a path that climbs out",
        |c| c.visage.train(train(&dots)),
        InvalidArgument,
        "PATH_OUTSIDE_ROOTS",
        Field("sources[0].utkface.path")
    );
    row!(
        rows,
        "a link that leads out",
        |c| c.visage.train(train(&link)),
        InvalidArgument,
        "PATH_OUTSIDE_ROOTS",
        Field("sources[0].utkface.path")
    );
    row!(
        rows,
        "a path to nothing",
        |c| c.visage.train(train(&absent)),
        NotFound,
        "FILE_NOT_FOUND",
        Field("sources[0].utkface.path")
    );
    let photos = home.path("photos");
    row!(
        rows,
        "a recipe without stages",
        |c| c.visage.train(v1::TrainRequest {
            recipe: Some(v1::Recipe { stages: Vec::new(), ..quick_recipe() }),
            ..train(&photos)
        }),
        InvalidArgument,
        "FIELD_INVALID",
        Field("recipe.stages")
    );

    fs::write(home.path("photos").join("weights.safetensors"), b"no weights at all").unwrap();
    let weights = home.path("photos").join("weights.safetensors").to_str().unwrap().to_owned();
    row!(
        rows,
        "weights that are none",
        |c| c.models.import_model_version(import(&weights)),
        InvalidArgument,
        "WEIGHTS_MISMATCH",
        Field("weights_path")
    );

    let pipe = home.path("photos").join("pipe.pth");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.to_str().unwrap().to_owned();
    row!(
        rows,
        "weights that are a pipe",
        |c| c.models.import_model_version(import(&pipe)),
        InvalidArgument,
        "WEIGHTS_MISMATCH",
        Field("weights_path")
    );
    let file = home.path("photos").join("weights.safetensors");
    row!(
        rows,
        "a file where a folder is due",
        |c| c.visage.train(train(&file)),
        InvalidArgument,
        "FIELD_INVALID",
        Field("sources[0].utkface.path")
    );
    let photos = home.path("photos");
    row!(
        rows,
        "a recipe of megabytes",
        |c| {
            let labels = (0..1000).map(|i| format!("{i:0>250}")).collect();
            let kind = v1::head::Kind::Classification(v1::ClassificationHead { labels });
            let head = v1::Head { name: "much".to_owned(), kind: Some(kind), ..v1::Head::default() };
            let mut recipe = quick_recipe();
            recipe.heads.extend((0..8).map(|i| v1::Head { name: format!("much{i}"), ..head.clone() }));
            c.visage.train(v1::TrainRequest { recipe: Some(recipe), ..train(&photos) })
        },
        InvalidArgument,
        "FIELD_INVALID",
        Field("recipe")
    );
    row!(
        rows,
        "an unknown run",
        |c| c.training.get_training_run(v1::GetTrainingRunRequest { name: "trainingRuns/0".to_owned() }),
        NotFound,
        "TRAINING_RUN_NOT_FOUND",
        Resource("trainingRuns/0")
    );
    row!(
        rows,
        "an unknown operation",
        |c| c.operations.get_operation(lro::GetOperationRequest { name: "operations/0".to_owned() }),
        NotFound,
        "OPERATION_NOT_FOUND",
        Resource("operations/0")
    );
    let operation = run.replace("trainingRuns/", "operations/");
    row!(
        rows,
        "cancelling what has ended",
        |c| c.operations.cancel_operation(lro::CancelOperationRequest { name: operation.clone() }),
        FailedPrecondition,
        "RUN_FINAL",
        Resource("trainingRuns/")
    );
    rows
}

#[tokio::test]
async fn every_refusal_has_its_code_reason_and_detail() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut clients = server.clients().await;
    prepare(&mut clients).await;
    let runs = clients.training.list_training_runs(v1::ListTrainingRunsRequest::default()).await.unwrap().into_inner();
    let rows = rows(&home, runs.training_runs[0].name.clone());
    let mut wrong = Vec::new();
    let n_rows = rows.len();
    for row in rows {
        match (row.call)(clients.clone()).await {
            Ok(()) => wrong.push(format!("{}: was answered", row.name)),
            Err(status) => {
                let got = (status.code(), reason(&status));
                if got != (row.code, row.reason.to_owned()) {
                    wrong.push(format!(
                        "{}: {got:?}, not {:?}: {}",
                        row.name,
                        (row.code, row.reason),
                        status.message()
                    ));
                }
                if !carries(&status, &row.detail) {
                    wrong.push(format!("{}: details are {:?}", row.name, details(&status)));
                }
            }
        }
        clients.visage.predict(predict(PORTRAIT)).await.unwrap_or_else(|e| panic!("after {}: {e:?}", row.name));
    }
    assert!(wrong.is_empty(), "{} of {n_rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(!home.log().contains("\"ERROR\"") && !home.log().contains(" ERROR "), "{}", home.log());
}

fn carries(status: &Status, detail: &Detail) -> bool {
    let details = details(status);
    match detail {
        Detail::None => true,
        Detail::Retry => details.retry_info().is_some(),
        Detail::Resource(name) => details.resource_info().is_some_and(|r| r.resource_name.starts_with(name)),
        Detail::Field(name) => {
            details.bad_request().is_some_and(|b| b.field_violations.iter().any(|v| v.field.starts_with(name)))
        }
    }
}

#[tokio::test]
async fn a_full_queue_answers_at_once_and_names_a_time() {
    let home = Home::trained("[serving]\nqueue_capacity = 1\nmax_batch = 1\n").await;
    let server = home.serve().await;
    let clients = server.clients().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let mut visage = clients.visage.clone();
        calls.spawn(async move { visage.predict(predict(PORTRAIT)).await });
    }
    let (mut answered, mut refused) = (0, 0);
    while let Some(result) = calls.join_next().await {
        match result.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
                assert!(carries(&status, &Detail::Retry), "{status:?}");
                refused += 1;
            }
        }
    }
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    clients.clone().visage.predict(predict(PORTRAIT)).await.unwrap();
}

#[tokio::test]
async fn a_version_beyond_the_memory_budget_is_refused_and_the_server_goes_on() {
    let home = Home::trained("[serving]\nmemory_budget_bytes = 1000000\n").await;
    let server = home.serve().await;
    let mut clients = server.clients().await;
    for _ in 0..2 {
        let status = clients.visage.predict(predict(PORTRAIT)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "DEVICE_MEMORY"), "{status:?}");
    }
    clients.models.list_models(v1::ListModelsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn an_expired_deadline_is_told_as_such() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    // This client has no timer of its own, so the server must answer.
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut visage = v1::visage_service_client::VisageServiceClient::with_origin(http, server.url.parse().unwrap());
    visage.predict(predict(PORTRAIT)).await.unwrap();
    for timeout in ["1n", "1u", "100u", "1m"] {
        let mut request = Request::new(predict(PORTRAIT));
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let status = visage.predict(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}: {status:?}");
        assert!(["DEADLINE_EXCEEDED", "DEADLINE_UNMEETABLE"].contains(&reason(&status).as_str()));
        // The message quotes the timeout, for callers who used the wrong unit.
        assert!(status.message().contains(&format!("(grpc-timeout: {timeout})")), "{status:?}");
        visage.predict(predict(PORTRAIT)).await.unwrap();
    }
    for malformed in ["5", "5s", "-1S", "5000000000n", "", "1.5S"] {
        let mut request = Request::new(predict(PORTRAIT));
        request.metadata_mut().insert("grpc-timeout", malformed.parse().unwrap());
        let status = visage.predict(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "FIELD_INVALID"), "{status:?}");
        assert_eq!(details(&status).bad_request().unwrap().field_violations[0].field, "grpc-timeout");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_harms_nobody() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut clients = server.clients().await;
    for _ in 0..50 {
        let mut visage = clients.visage.clone();
        let call = tokio::spawn(async move { visage.predict(predict(PORTRAIT)).await });
        tokio::task::yield_now().await;
        call.abort();
    }
    clients.visage.predict(predict(PORTRAIT)).await.unwrap();
}
