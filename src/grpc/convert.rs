//! Names and views that several services share.

use prost::Message;
use prost_types::Any;

use crate::{
    app::{App, AppError, PageRequest},
    names::{ModelId, VersionName},
    proto::{longrunning, v1},
    similarity::{CollectionId, FaceId, FaceName},
};

/// `models/{model}`, without version or alias.
pub(super) fn model_name(field: &str, name: &str) -> Result<ModelId, AppError> {
    let id = name
        .strip_prefix("models/")
        .ok_or_else(|| AppError::field(field, format!("must be models/{{model}}, not {name:?}")))?;
    Ok(ModelId::parse(field, id)?)
}

/// `collections/{c}`.
pub(super) fn collection_name(field: &str, name: &str) -> Result<CollectionId, AppError> {
    let id = name
        .strip_prefix("collections/")
        .ok_or_else(|| AppError::field(field, format!("must be collections/{{collection}}, not {name:?}")))?;
    Ok(CollectionId::parse(field, id)?)
}

/// A number that the contract knows.
pub(super) fn face_selection(number: i32) -> Result<v1::FaceSelection, AppError> {
    v1::FaceSelection::try_from(number)
        .map_err(|_| AppError::field("face_selection", format!("{number} is no selection that this server has")))
}

/// `collections/{c}/faces/{f}`.
pub(super) fn face_name(field: &str, name: &str) -> Result<FaceName, AppError> {
    Ok(FaceName::parse(field, name)?)
}

/// A face that must be of this collection.
pub(super) fn face_of(field: &str, name: &str, collection: &CollectionId) -> Result<FaceId, AppError> {
    let name = face_name(field, name)?;
    if name.collection != *collection {
        return Err(AppError::field(field, format!("must be a face of collections/{collection}")));
    }
    Ok(name.face)
}

/// The id behind `prefix`, such as `trainingRuns/`.
pub(super) fn id_after(field: &str, prefix: &str, name: &str) -> Result<String, AppError> {
    name.strip_prefix(prefix)
        .filter(|id| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        .map(str::to_owned)
        .ok_or_else(|| AppError::field(field, format!("must be {prefix}{{id}}, not {name:?}")))
}

/// A request's page fields.
pub(super) fn page(size: i32, token: &str) -> PageRequest<'_> {
    PageRequest { size, token }
}

/// A run as a long-running operation of the same id.
pub(super) async fn train_operation(app: &App, run: v1::TrainingRun) -> longrunning::Operation {
    let id = run.name.trim_start_matches("trainingRuns/").to_owned();
    let result = match run.state() {
        v1::RunState::Succeeded => Some(longrunning::operation::Result::Response(trained(app, &run.version).await)),
        v1::RunState::Failed | v1::RunState::Cancelled => {
            Some(longrunning::operation::Result::Error(run.error.clone().unwrap_or_default()))
        }
        v1::RunState::Unspecified | v1::RunState::Queued | v1::RunState::Running => None,
    };
    longrunning::Operation {
        name: format!("operations/{id}"),
        metadata: Some(any("visage.v1.TrainingRun", &run)),
        done: result.is_some(),
        result,
    }
}

/// The version that a run made; only its name, should it have been deleted since.
async fn trained(app: &App, name: &str) -> Any {
    let found = match VersionName::parse("version", name) {
        Ok(version) => app.models.describe(version).await.ok(),
        Err(_) => None,
    };
    let version = found.unwrap_or_else(|| v1::ModelVersion { name: name.to_owned(), ..v1::ModelVersion::default() });
    any("visage.v1.ModelVersion", &version)
}

fn any(type_name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
}
