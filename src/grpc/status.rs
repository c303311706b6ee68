//! The table from errors to gRPC codes, reasons and details.
//!
//! Every error carries `google.rpc.ErrorInfo` with a reason of `visage.v1.ErrorReason` and the domain "visage". If
//! useful, it also carries `BadRequest`, `RetryInfo` or `ResourceInfo`. For an internal error, the caller gets a fixed
//! message and the call's id; the log gets the chain, once.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(super) use crate::proto::v1::ErrorReason as Reason;
use crate::{
    app::{AppError, Call, ERROR_DOMAIN, reason_name},
    names::InvalidName,
    nn::NnError,
    proto::rpc,
    registry::RegistryError,
    serving::{ServeError, Stage},
    similarity::SimilarityError,
    store::StoreError,
    training::TrainingError,
    vision::ImageError,
};

/// The default retry delay.
const RETRY_SOON: Duration = Duration::from_millis(200);

/// The time to wait for a condition that an operator must end.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// The wire form of an error.
struct Row {
    code: Code,
    reason: Reason,
    message: String,
    metadata: Vec<(&'static str, String)>,
    field: Option<(String, String)>,
    resource: Option<(&'static str, String)>,
    retry_after: Option<Duration>,
}

impl Row {
    fn new(code: Code, reason: Reason, error: &impl std::fmt::Display) -> Self {
        Self {
            code,
            reason,
            message: error.to_string(),
            metadata: Vec::new(),
            field: None,
            resource: None,
            retry_after: None,
        }
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Names the version that a photo waited for, or the decoding stage, which has no version.
    fn at(self, stage: &Stage) -> Self {
        match stage {
            Stage::Version(version) => self.with("version", version),
            Stage::Pixels => self.with("during", stage),
        }
    }

    fn field(mut self, field: impl ToString, description: impl ToString) -> Self {
        self.field = Some((field.to_string(), description.to_string()));
        self
    }

    fn resource(mut self, kind: &'static str, name: impl ToString) -> Self {
        self.resource = Some((kind, name.to_string()));
        self
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    fn into_status(self) -> Status {
        let metadata: HashMap<String, String> =
            self.metadata.into_iter().map(|(k, v)| (k.to_owned(), shortened(v))).collect();
        let mut details = ErrorDetails::with_error_info(reason_name(self.reason), ERROR_DOMAIN, metadata);
        if let Some((field, description)) = self.field {
            details.add_bad_request_violation(field, shortened(description));
        }
        if let Some((kind, name)) = self.resource {
            details.set_resource_info(kind, shortened(name), "", "");
        }
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        Status::with_error_details(self.code, shortened(self.message), details)
    }
}

/// The longest text in an error, in bytes. Errors are sent as HTTP/2 headers, of which clients accept 8 KiB in total,
/// and they quote callers' input.
const MAX_TEXT_BYTES: usize = 512;

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push('…');
    }
    text
}

/// Converts a use case's error to a status; logs internal errors and damaged data, once.
pub(super) fn from_app(call: &Call, error: AppError) -> Status {
    let row = app_row(&error);
    match row.code {
        Code::Internal => {
            tracing::error!(call_id = %call.call_id, error = %chain(&error), "internal error");
            Row { retry_after: row.retry_after, ..internal_row(&call.call_id) }.into_status()
        }
        Code::DataLoss => {
            tracing::error!(call_id = %call.call_id, error = %chain(&error), "stored data is damaged");
            row.into_status()
        }
        _ => row.into_status(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn app_row(error: &AppError) -> Row {
    match error {
        AppError::FieldInvalid { field, description } => {
            Row::new(Code::InvalidArgument, Reason::FieldInvalid, error).field(field, description)
        }
        AppError::PageTokenInvalid { list } => Row::new(Code::InvalidArgument, Reason::PageTokenInvalid, error)
            .field("page_token", "is not a token of this list")
            .with("list", list),
        AppError::FaceErased { request_id } => {
            Row::new(Code::FailedPrecondition, Reason::FaceErased, error).with("request_id", request_id)
        }
        AppError::RequestIdReused { request_id } => {
            Row::new(Code::AlreadyExists, Reason::RequestIdReused, error).with("request_id", request_id)
        }
        AppError::RunNotFound { name } => {
            Row::new(Code::NotFound, Reason::TrainingRunNotFound, error).resource("TrainingRun", name)
        }
        AppError::OperationNotFound { name } => {
            Row::new(Code::NotFound, Reason::OperationNotFound, error).resource("Operation", name)
        }
        AppError::RunFinal { name, state } => Row::new(Code::FailedPrecondition, Reason::RunFinal, error)
            .resource("TrainingRun", name)
            .with("state", state),
        AppError::OperationRunning { name } => {
            Row::new(Code::FailedPrecondition, Reason::OperationRunning, error).resource("Operation", name)
        }
        AppError::TrainingQueueFull { n_waiting } => Row::new(Code::ResourceExhausted, Reason::Overloaded, error)
            .with("waiting", n_waiting)
            .retry(Duration::from_secs(60)),
        AppError::PublishedWeights { .. } => Row::new(Code::Internal, Reason::Internal, error),
        AppError::FaceUnusable { field, reasons } => {
            let names: Vec<_> =
                reasons.iter().map(|r| r.as_str_name().trim_start_matches("ABSTENTION_REASON_")).collect();
            Row::new(Code::InvalidArgument, Reason::FaceUnusable, error)
                .field(field, "has no usable face")
                .with("abstention_reasons", names.join(", "))
        }
        AppError::UnsupportedByModel { version, .. } => {
            Row::new(Code::FailedPrecondition, Reason::UnsupportedByModel, error).resource("ModelVersion", version)
        }
        AppError::DeadlineExceeded { during } => {
            Row::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, error).with("during", during)
        }
        AppError::VersionFailed { source, retry_after, .. } => app_row(source).retry(*retry_after),
        AppError::Stopping => Row::new(Code::Unavailable, Reason::Unavailable, error).retry(Duration::from_secs(1)),
        AppError::Internal(_) => Row::new(Code::Internal, Reason::Internal, error),
        AppError::Name(e) => name_row(e),
        AppError::Registry(e) => registry_row(e),
        AppError::Serve(e) => serve_row(e),
        AppError::Image(e) => image_row(e),
        AppError::ImageOf { field, source } => image_row(source).with("field", field),
        AppError::Similarity(e) => similarity_row(e),
        AppError::Training(e) => training_row(e),
        AppError::Nn(e) => nn_row(e),
        AppError::Store(e) => store_row(e),
    }
}

fn image_row(error: &ImageError) -> Row {
    let row = |reason| Row::new(Code::InvalidArgument, reason, error).field("image", error);
    match error {
        ImageError::UnsupportedFormat { .. } => row(Reason::ImageFormatUnsupported),
        ImageError::Unreadable { format, .. } => row(Reason::ImageUnreadable).with("format", format),
        ImageError::TooLarge { width, height, max_pixels } => {
            row(Reason::ImageTooLarge).with("width", width).with("height", height).with("max_pixels", max_pixels)
        }
    }
}

fn name_row(error: &InvalidName) -> Row {
    Row::new(Code::InvalidArgument, Reason::FieldInvalid, error).field(&error.field, error.rule)
}

fn registry_row(error: &RegistryError) -> Row {
    match error {
        RegistryError::Name(e) => name_row(e),
        RegistryError::ModelNotFound { model } => {
            Row::new(Code::NotFound, Reason::ModelNotFound, error).resource("Model", format!("models/{model}"))
        }
        RegistryError::VersionNotFound { version } => {
            Row::new(Code::NotFound, Reason::ModelVersionNotFound, error).resource("ModelVersion", version)
        }
        RegistryError::AliasNotFound { model, alias } => Row::new(Code::NotFound, Reason::ModelAliasNotFound, error)
            .resource("ModelAlias", format!("models/{model}@{alias}")),
        RegistryError::AliasMoved { model, alias, found, .. } => {
            let row = Row::new(Code::FailedPrecondition, Reason::AliasMoved, error)
                .resource("ModelAlias", format!("models/{model}@{alias}"));
            match found {
                Some(number) => row.with("found", format!("models/{model}/versions/{number}")),
                None => row,
            }
        }
        RegistryError::InUse { what, by } => {
            Row::new(Code::FailedPrecondition, Reason::InUse, error).resource("ModelVersion", what).with("by", by)
        }
        RegistryError::UnsupportedVersion { version, .. } => {
            Row::new(Code::FailedPrecondition, Reason::UnsupportedByModel, error).resource("ModelVersion", version)
        }
        RegistryError::CorruptVersion { version, .. } => {
            Row::new(Code::DataLoss, Reason::DataCorrupt, error).resource("ModelVersion", version)
        }
        RegistryError::Store(e) => store_row(e),
    }
}

fn similarity_row(error: &SimilarityError) -> Row {
    match error {
        SimilarityError::Invalid { field, rule } => {
            Row::new(Code::InvalidArgument, Reason::FieldInvalid, error).field(field, rule)
        }
        SimilarityError::CollectionNotFound { name } => {
            Row::new(Code::NotFound, Reason::CollectionNotFound, error).resource("Collection", name)
        }
        SimilarityError::FaceNotFound { name } => {
            Row::new(Code::NotFound, Reason::FaceNotFound, error).resource("Face", name)
        }
        SimilarityError::AlreadyExists { name } => {
            Row::new(Code::AlreadyExists, Reason::ResourceExists, error).resource("Resource", name)
        }
        SimilarityError::SpaceMismatch { got, expected } => {
            Row::new(Code::FailedPrecondition, Reason::EmbeddingSpaceMismatch, error)
                .with("got", got)
                .with("expected", expected)
        }
        SimilarityError::Void => Row::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, error),
        SimilarityError::Store(e) => store_row(e),
    }
}

fn training_row(error: &TrainingError) -> Row {
    match error {
        TrainingError::FieldInvalid { field, detail } => {
            Row::new(Code::InvalidArgument, Reason::FieldInvalid, error).field(field, detail)
        }
        TrainingError::PathOutsideRoots { field, path } => {
            Row::new(Code::InvalidArgument, Reason::PathOutsideRoots, error)
                .field(field, "must be below a configured training root")
                .with("path", path)
        }
        TrainingError::FileNotFound { field, path } => {
            Row::new(Code::NotFound, Reason::FileNotFound, error).field(field, "must exist").with("path", path)
        }
        TrainingError::BadData { .. } | TrainingError::Diverged { .. } => {
            Row::new(Code::InvalidArgument, Reason::FieldInvalid, error)
        }
        TrainingError::Network(e) => nn_row(e),
        TrainingError::Cancelled => Row::new(Code::Cancelled, Reason::Cancelled, error),
        TrainingError::RootUnusable { .. }
        | TrainingError::Launch { .. }
        | TrainingError::Protocol { .. }
        | TrainingError::Io { .. }
        | TrainingError::Internal { .. } => Row::new(Code::Internal, Reason::Internal, error),
    }
}

fn serve_row(error: &ServeError) -> Row {
    match error {
        ServeError::Overloaded { stage, retry_after, .. } => {
            Row::new(Code::ResourceExhausted, Reason::Overloaded, error).at(stage).retry(*retry_after)
        }
        ServeError::DeadlineExceeded { stage } => {
            Row::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, error).at(stage)
        }
        ServeError::DeadlineUnmeetable { version, needed, left } => {
            Row::new(Code::DeadlineExceeded, Reason::DeadlineUnmeetable, error)
                .with("version", version)
                .with("needed_ms", needed.as_millis())
                .with("left_ms", left.as_millis())
        }
        ServeError::NotLoaded { version } => {
            Row::new(Code::Unavailable, Reason::Unavailable, error).with("version", version).retry(RETRY_SOON)
        }
        ServeError::DeviceMemory { version, .. } => {
            Row::new(Code::ResourceExhausted, Reason::DeviceMemory, error).with("version", version)
        }
        ServeError::EngineFailed { .. } | ServeError::NoThread { .. } => {
            Row::new(Code::Internal, Reason::Internal, error)
        }
        ServeError::GoldenMismatch { version, .. } | ServeError::WeightsMismatch { version, .. } => {
            Row::new(Code::DataLoss, Reason::DataCorrupt, error).resource("ModelVersion", version)
        }
        ServeError::Stopping => Row::new(Code::Unavailable, Reason::Unavailable, error).retry(Duration::from_secs(1)),
    }
}

fn nn_row(error: &NnError) -> Row {
    match error {
        NnError::WeightsMismatch { .. } | NnError::WeightsUnreadable { .. } => {
            Row::new(Code::InvalidArgument, Reason::WeightsMismatch, error).field("weights_path", error)
        }
        NnError::OutOfMemory { .. } => Row::new(Code::ResourceExhausted, Reason::DeviceMemory, error),
        NnError::DeviceUnavailable { .. } | NnError::Torch { .. } => Row::new(Code::Internal, Reason::Internal, error),
    }
}

fn store_row(error: &StoreError) -> Row {
    match error {
        StoreError::Corrupt { .. } => Row::new(Code::DataLoss, Reason::DataCorrupt, error),
        StoreError::Full { .. } => Row::new(Code::ResourceExhausted, Reason::StorageFull, error).retry(RETRY_LATER),
        StoreError::WritesFail { .. } => Row::new(Code::Unavailable, Reason::Unavailable, error).retry(RETRY_LATER),
        StoreError::Conflict { .. } => Row::new(Code::Aborted, Reason::Unavailable, error).retry(RETRY_SOON),
        StoreError::Locked { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::Io { .. }
        | StoreError::NotEmpty
        | StoreError::NoRoom { .. }
        | StoreError::Key { .. }
        | StoreError::BadExport(_) => Row::new(Code::Internal, Reason::Internal, error),
    }
}

/// The transport's error for a message over the size limit.
pub(super) fn message_too_large(detail: &str) -> Status {
    let message = format!("the message is over the server's size limit: {detail}");
    Row::new(Code::ResourceExhausted, Reason::MessageTooLarge, &message).into_status()
}

/// The transport's error for bytes that are not a message of the method's type.
pub(super) fn message_malformed(detail: &str) -> Status {
    let message = format!("the request is not a valid message of this method: {detail}");
    Row::new(Code::InvalidArgument, Reason::FieldInvalid, &message).field("request", detail).into_status()
}

/// The error of a server at its limit of calls.
pub(super) fn server_overloaded() -> Status {
    Row::new(Code::ResourceExhausted, Reason::Overloaded, &"the server is at its limit of calls in progress")
        .retry(RETRY_SOON)
        .into_status()
}

/// The error of a deadline that passed during `during`.
pub(super) fn deadline_exceeded(during: &'static str) -> Status {
    app_row(&AppError::DeadlineExceeded { during }).into_status()
}

/// The longest quotation of an invalid header, in characters.
const MAX_HEADER_CHARS: usize = 32;

/// The error of an invalid timeout header.
pub(super) fn timeout_malformed(header: &str) -> Status {
    let header: String = header.chars().take(MAX_HEADER_CHARS).collect();
    let detail =
        format!("{header:?} is not a timeout; use one to eight digits and H, M, S, m, u or n: 500m is half a second");
    Row::new(Code::InvalidArgument, Reason::FieldInvalid, &format!("grpc-timeout: {detail}"))
        .field("grpc-timeout", detail)
        .into_status()
}

/// Appends text to a status's message.
pub(super) fn with_more(status: &Status, more: &str) -> Status {
    let message = rpc::Status { message: format!("{}; {more}", status.message()), ..to_message(status) };
    Status::with_details(status.code(), message.message.clone(), message.encode_to_vec().into())
}

/// The error of a server that is still opening.
pub(super) fn opening() -> Status {
    let message = "the server is still opening its store; try another server, or this one again in a moment";
    Row::new(Code::Unavailable, Reason::Unavailable, &message).retry(Duration::from_secs(1)).into_status()
}

/// The error of a server that is stopping.
pub(super) fn stopping() -> Status {
    app_row(&AppError::Stopping).into_status()
}

/// The caller's view of a bug: a fixed message and the id to search the log for.
pub(super) fn internal(call_id: &str) -> Status {
    internal_row(call_id).into_status()
}

fn internal_row(call_id: &str) -> Row {
    Row::new(Code::Internal, Reason::Internal, &format!("internal error; search the server's log for {call_id}"))
        .with("call_id", call_id)
}

/// Converts a status to a message.
pub(super) fn to_message(status: &Status) -> rpc::Status {
    // A status without details has none to decode; code and message come from the outer status.
    let details = rpc::Status::decode(status.details()).map(|s| s.details).unwrap_or_default();
    rpc::Status { code: status.code().into(), message: status.message().to_owned(), details }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::VersionName;

    #[test]
    fn only_errors_of_a_version_name_one() {
        let version = VersionName::parse("version", "models/face/versions/1").unwrap();
        let metadata = |stage: Stage| {
            let full = ServeError::Overloaded { stage: stage.clone(), n_waiting: 1, retry_after: RETRY_SOON };
            let late = ServeError::DeadlineExceeded { stage };
            [full, late].map(|error| app_row(&AppError::Serve(error)).metadata)
        };
        let named = vec![("version", "models/face/versions/1".to_owned())];
        assert_eq!(metadata(Stage::Version(version)), [named.clone(), named]);
        let during = vec![("during", "the decoding of photos".to_owned())];
        assert_eq!(metadata(Stage::Pixels), [during.clone(), during]);
    }

    #[test]
    fn a_version_that_failed_answers_its_own_reason_and_a_time() {
        let version = VersionName::parse("version", "models/face/versions/1").unwrap();
        let error = ServeError::GoldenMismatch { version: version.clone(), detail: "output 0 differs".to_owned() };
        let source = std::sync::Arc::new(AppError::Serve(error));
        let retry_after = Duration::from_secs(3);
        let row = app_row(&AppError::VersionFailed { version, source, retry_after });
        assert_eq!((row.code, row.reason), (Code::DataLoss, Reason::DataCorrupt));
        assert_eq!(row.retry_after, Some(retry_after));
    }
}
