//! Collections of ready vectors, for suites that need no photo of a face.

use anyhow::bail;
use visage::{
    cli::output,
    proto::v1::{self, enroll_face_request::Source},
};

use super::{photos, train_request};
use crate::training_server::TrainingServer;

/// Trains the smallest version, because a collection needs an embedding space; returns the version's name.
pub(super) async fn train_smallest(server: &mut TrainingServer) -> anyhow::Result<String> {
    let folder = server.root().join("photos");
    photos::write_folder(&folder, 64)?;
    let stage = v1::Stage { epochs: 1, image_size_px: 32, ..v1::Stage::default() };
    let trained = server.train(train_request(&folder, v1::Architecture::Resnet18, stage, 0), |_| {}).await?;
    Ok(trained.version)
}

/// Creates a collection; returns its name.
pub(super) async fn create_collection(
    server: &mut TrainingServer,
    id: String,
    embedding_space: String,
) -> anyhow::Result<String> {
    let request =
        v1::CreateCollectionRequest { collection_id: id, embedding_space, ..v1::CreateCollectionRequest::default() };
    Ok(server.clients.faces.create_collection(request).await?.into_inner().name)
}

/// Makes a request that enrols a vector; an empty id lets the server make one.
pub(super) fn enrolment(parent: &str, face_id: String, values: Vec<f32>) -> v1::EnrollFaceRequest {
    let source = Some(Source::Vector(v1::FaceVector { values, space: String::new() }));
    v1::EnrollFaceRequest { parent: parent.to_owned(), face_id, source, ..v1::EnrollFaceRequest::default() }
}

/// Enrols faces by one stream; fails when one is refused.
pub(super) async fn enroll(
    server: &mut TrainingServer,
    requests: impl ExactSizeIterator<Item = v1::EnrollFaceRequest> + Send + 'static,
) -> anyhow::Result<()> {
    let progress = output::bar(requests.len() as u64, "enrolling");
    let requests =
        requests.map(|request| v1::StreamEnrollFacesRequest { request: Some(request), correlation_id: String::new() });
    let mut answers = server.clients.faces.stream_enroll_faces(futures::stream::iter(requests)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(v1::stream_enroll_faces_response::Result::Error(error)) = answer.result {
            bail!("a face was refused: {}", error.message);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(())
}
