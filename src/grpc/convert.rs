//! Name parsing and message conversions that several services share.

use prost::Message;
use prost_types::Any;

use crate::{
    app::{App, AppError, Page, PageRequest, RunOperation},
    names::{ModelId, RunId},
    proto::{longrunning, v1},
    similarity::{CollectionId, FaceId, FaceName},
};

/// Parses `models/{model}`, without version or alias.
pub(super) fn model_name(field: &str, name: &str) -> Result<ModelId, AppError> {
    let id = name
        .strip_prefix("models/")
        .ok_or_else(|| AppError::field(field, format!("must be models/{{model}}, not {name:?}")))?;
    Ok(ModelId::parse(field, id)?)
}

/// Parses `collections/{c}`.
pub(super) fn collection_name(field: &str, name: &str) -> Result<CollectionId, AppError> {
    let id = name
        .strip_prefix("collections/")
        .ok_or_else(|| AppError::field(field, format!("must be collections/{{collection}}, not {name:?}")))?;
    Ok(CollectionId::parse(field, id)?)
}

/// Parses an enum number of the contract.
pub(super) fn face_selection(number: i32) -> Result<v1::FaceSelection, AppError> {
    v1::FaceSelection::try_from(number)
        .map_err(|_| AppError::field("face_selection", format!("{number} is not known to this server")))
}

/// Parses an enum number of the contract.
pub(super) fn architecture(number: i32) -> Result<v1::Architecture, AppError> {
    v1::Architecture::try_from(number)
        .map_err(|_| AppError::field("architecture", format!("{number} is not known to this server")))
}

/// Parses a face's name, which must be of this collection.
pub(super) fn face_of(field: &str, name: &str, collection: &CollectionId) -> Result<FaceId, AppError> {
    let name = FaceName::parse(field, name)?;
    if name.collection != *collection {
        return Err(AppError::field(field, format!("must be a face of collections/{collection}")));
    }
    Ok(name.face)
}

/// Parses the id after `prefix`, such as `trainingRuns/`.
pub(super) fn run_id(field: &str, prefix: &str, name: &str) -> Result<RunId, AppError> {
    name.strip_prefix(prefix)
        .and_then(RunId::parse)
        .ok_or_else(|| AppError::field(field, format!("must be {prefix}{{id}}, not {name:?}")))
}

/// Parses a request's page of a list; `list` includes parent and filter.
pub(super) fn page(app: &App, size: i32, token: &str, list: impl Into<String>) -> Result<Page, AppError> {
    Page::parse(PageRequest { size, token }, app.page_limits, list.into())
}

/// Converts a run to a long-running operation with the same id.
pub(super) fn operation(operation: RunOperation) -> longrunning::Operation {
    let RunOperation { run, outcome } = operation;
    let result = outcome.map(|outcome| match outcome {
        Ok(version) => longrunning::operation::Result::Response(any("visage.v1.ModelVersion", &version)),
        Err(error) => longrunning::operation::Result::Error(error),
    });
    longrunning::Operation {
        name: run.name.replace("trainingRuns/", "operations/"),
        metadata: Some(any("visage.v1.TrainingRun", &run)),
        done: result.is_some(),
        result,
    }
}

fn any(type_name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
}
