//! Shared parts of the tests: servers, clients, generated faces.

#[allow(dead_code, reason = "the tests of training data use more of it")]
pub(crate) mod faces;
pub(crate) mod server;

use std::time::Duration;

use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::{ErrorDetails, StatusExt};
use visage::proto::longrunning::operations_client::OperationsClient;
use visage::proto::v1::{
    self, face_service_client::FaceServiceClient, model_service_client::ModelServiceClient,
    training_service_client::TrainingServiceClient, visage_service_client::VisageServiceClient,
    watch_training_run_response::Event,
};

pub(crate) type Channel = tonic::transport::Channel;

/// A client for each service.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) channel: Channel,
    pub(crate) visage: VisageServiceClient<Channel>,
    pub(crate) models: ModelServiceClient<Channel>,
    pub(crate) training: TrainingServiceClient<Channel>,
    pub(crate) faces: FaceServiceClient<Channel>,
    pub(crate) operations: OperationsClient<Channel>,
}

impl Clients {
    pub(crate) async fn connect(url: &str) -> Self {
        let channel = tonic::transport::Endpoint::from_shared(url.to_owned())
            .unwrap()
            .connect_timeout(Duration::from_secs(10))
            .connect()
            .await
            .unwrap();
        Self {
            // The tests send oversized messages on purpose.
            visage: VisageServiceClient::new(channel.clone()).max_encoding_message_size(usize::MAX),
            models: ModelServiceClient::new(channel.clone()),
            training: TrainingServiceClient::new(channel.clone()),
            faces: FaceServiceClient::new(channel.clone()),
            operations: OperationsClient::new(channel.clone()),
            channel,
        }
    }

    /// Enrols faces by one stream, which refuses none.
    pub(crate) async fn enroll_all(&mut self, requests: impl IntoIterator<Item = v1::EnrollFaceRequest>) {
        let requests: Vec<_> = requests
            .into_iter()
            .map(|request| v1::StreamEnrollFacesRequest { request: Some(request), correlation_id: String::new() })
            .collect();
        let n_requests = requests.len();
        let mut answers = self.faces.stream_enroll_faces(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let mut n_enrolled = 0;
        while let Some(answer) = answers.message().await.unwrap() {
            assert!(matches!(answer.result, Some(v1::stream_enroll_faces_response::Result::Face(_))), "{answer:?}");
            n_enrolled += 1;
        }
        assert_eq!(n_enrolled, n_requests);
    }

    /// Creates a collection for the 16 numbers of `models/face`'s champion; returns its name.
    pub(crate) async fn create_collection(&mut self, id: &str) -> String {
        let request = v1::CreateCollectionRequest {
            collection_id: id.to_owned(),
            embedding_space: "models/face#embedding16".to_owned(),
            ..Default::default()
        };
        self.faces.create_collection(request).await.unwrap().into_inner().name
    }

    /// Returns true if the server reports this service as serving; the empty name is the whole server.
    pub(crate) async fn is_serving(&self, service: &str) -> bool {
        is_serving(&self.channel, service).await
    }

    /// Watches a run to its end.
    pub(crate) async fn finish(&mut self, run: &str) -> v1::TrainingRun {
        let request = v1::WatchTrainingRunRequest { name: run.to_owned(), after_sequence: 0 };
        let mut events = self.training.watch_training_run(request).await.unwrap().into_inner();
        while let Some(event) = events.message().await.unwrap() {
            if let Some(Event::Ended(run)) = event.event {
                return run;
            }
        }
        panic!("the events of {run} ended without an end");
    }
}

pub(crate) async fn is_serving(channel: &Channel, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status == 1
}

/// Makes a request that enrols a vector.
pub(crate) fn vector_enrolment(parent: &str, id: &str, values: Vec<f32>) -> v1::EnrollFaceRequest {
    let source = v1::enroll_face_request::Source::Vector(v1::FaceVector { values, space: String::new() });
    v1::EnrollFaceRequest {
        parent: parent.to_owned(),
        face_id: id.to_owned(),
        source: Some(source),
        ..Default::default()
    }
}

/// Returns the machine-readable reason of an error.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_error_details().error_info().cloned();
    let info = info.unwrap_or_else(|| panic!("{status:?} has no ErrorInfo"));
    assert_eq!(info.domain, "visage");
    info.reason
}

/// Returns all details of an error.
pub(crate) fn details(status: &Status) -> ErrorDetails {
    status.get_error_details()
}

/// Returns a recipe that trains in a second and still learns the generated faces.
pub(crate) fn quick_recipe() -> v1::Recipe {
    v1::Recipe {
        architecture: v1::Architecture::Resnet18.into(),
        heads: vec![
            v1::Head {
                name: "age".to_owned(),
                kind: Some(v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() })),
                ..v1::Head::default()
            },
            v1::Head {
                name: "gender".to_owned(),
                kind: Some(v1::head::Kind::Classification(v1::ClassificationHead::default())),
                ..v1::Head::default()
            },
        ],
        stages: vec![v1::Stage { epochs: 1, image_size_px: 32, max_learning_rate: 2e-3, freeze_body: false }],
        batch_size: 16,
        max_bad_fraction: Some(0.2),
        seed: 7,
        ..v1::Recipe::default()
    }
}

/// Returns the folder of generated faces as a source.
pub(crate) fn utkface(folder: &std::path::Path) -> v1::DataSource {
    let path = folder.to_str().unwrap().to_owned();
    v1::DataSource { source: Some(v1::data_source::Source::Utkface(v1::UtkFaceFolder { path })) }
}
