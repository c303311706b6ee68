//! The errors of use cases.

use std::{sync::Arc, time::Duration};

use crate::{
    error::Kind,
    names::{InvalidName, VersionName},
    nn::NnError,
    proto::v1::{AbstentionReason, ErrorReason},
    registry::RegistryError,
    serving::{PixelError, ServeError},
    similarity::SimilarityError,
    store::StoreError,
    training::TrainingError,
    vision::ImageError,
};

/// The domain of all error reasons, in `google.rpc.ErrorInfo`.
pub(crate) const ERROR_DOMAIN: &str = "visage";

/// Returns a reason's name on the wire: without the enum's prefix.
#[must_use]
pub(crate) fn reason_name(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// An error of a use case or of a layer below it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// A request field is missing, malformed or out of range.
    #[error("{field}: {description}")]
    FieldInvalid {
        /// The field's path in the request.
        field: String,
        /// The error and the allowed values.
        description: String,
    },
    /// The page token is not one of this list.
    #[error("the page token is not one of the list {list}; start again with an empty token")]
    PageTokenInvalid {
        /// The list's name.
        list: String,
    },
    /// The request id was used with another request body.
    #[error("request_id {request_id:?} was used with another request; choose a new one")]
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// The request enrolled a face that has been erased since.
    #[error(
        "request_id {request_id:?} enrolled a face that has been erased; to enrol the person again, choose a new one"
    )]
    FaceErased {
        /// The id.
        request_id: String,
    },
    /// No such training run.
    #[error("there is no training run {name}")]
    RunNotFound {
        /// The requested name.
        name: String,
    },
    /// No such operation.
    #[error("there is no operation {name}")]
    OperationNotFound {
        /// The requested name.
        name: String,
    },
    /// The run has already ended.
    #[error("{name} has already ended: {state}")]
    RunFinal {
        /// The run's name.
        name: String,
        /// Its final state.
        state: String,
    },
    /// The operation has not ended yet.
    #[error("{name} is still running; cancel it or wait for its end")]
    OperationRunning {
        /// The operation's name.
        name: String,
    },
    /// The queue of training runs is full.
    #[error("{n_waiting} training runs are waiting, the limit; try again when one has started")]
    TrainingQueueFull {
        /// The number of waiting runs.
        n_waiting: usize,
    },
    /// The version could not be loaded; the next attempt is not due yet.
    #[error("{version} could not be loaded: {source}")]
    VersionFailed {
        /// The version.
        version: VersionName,
        /// The error of the last attempt.
        source: Arc<AppError>,
        /// The time until the next attempt.
        retry_after: Duration,
    },
    /// The version does not support the request.
    #[error("{version} {what}")]
    UnsupportedByModel {
        /// The version's name.
        version: String,
        /// What it does not support.
        what: String,
    },
    /// A photo has no face that can be enrolled, searched for or compared.
    #[error("{field}: {}", unusable(reasons))]
    FaceUnusable {
        /// The photo's request field.
        field: &'static str,
        /// The reasons.
        reasons: Vec<AbstentionReason>,
    },
    /// The published weights in the configured folder cannot be used.
    #[error("models.published_dir: {detail}")]
    PublishedWeights {
        /// What is wrong, and what to do.
        detail: String,
    },
    /// The call's deadline passed, but not in the device's queue.
    #[error("the deadline passed during {during}")]
    DeadlineExceeded {
        /// The stage at that time.
        during: &'static str,
    },
    /// The server is stopping.
    #[error("the server is stopping; try another server, or this one again in a moment")]
    Stopping,
    /// A bug in the server.
    #[error("{0}")]
    Internal(String),
    /// An invalid resource name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An error of the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An error of the serving layer.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An error about the call's photo.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An error about one of several photos of a request.
    #[error("{field}: {source}")]
    ImageOf {
        /// The photo's request field.
        field: &'static str,
        /// What is wrong with the photo.
        source: ImageError,
    },
    /// An error of the similarity layer.
    #[error(transparent)]
    Similarity(#[from] SimilarityError),
    /// An error of the training layer.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// An error of networks and weights.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppError {
    /// Adds the request field's name to an error about an image.
    pub(super) fn of_image(self, field: &'static str) -> Self {
        match self {
            Self::Image(source) => Self::ImageOf { field, source },
            other => other,
        }
    }

    /// Makes an error about a request field.
    pub(crate) fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::FieldInvalid { field: field.into(), description: description.into() }
    }

    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::FieldInvalid { .. } | Self::PageTokenInvalid { .. } | Self::FaceUnusable { .. } | Self::Name(_) => {
                Kind::Invalid
            }
            Self::RunNotFound { .. } | Self::OperationNotFound { .. } => Kind::NotFound,
            Self::RequestIdReused { .. }
            | Self::FaceErased { .. }
            | Self::RunFinal { .. }
            | Self::OperationRunning { .. }
            | Self::UnsupportedByModel { .. } => Kind::Conflict,
            Self::TrainingQueueFull { .. } | Self::Stopping => Kind::Overloaded,
            Self::DeadlineExceeded { .. } => Kind::Cancelled,
            Self::Internal(_) | Self::PublishedWeights { .. } => Kind::Internal,
            Self::VersionFailed { source, .. } => source.kind(),
            Self::Registry(e) => e.kind(),
            Self::Serve(e) => e.kind(),
            Self::Image(e) | Self::ImageOf { source: e, .. } => e.kind(),
            Self::Similarity(e) => e.kind(),
            Self::Training(e) => e.kind(),
            Self::Nn(e) => e.kind(),
            Self::Store(e) => e.kind(),
        }
    }
}

/// Lists the reasons as text.
fn unusable(reasons: &[AbstentionReason]) -> String {
    let texts = reasons.iter().map(|reason| match reason {
        AbstentionReason::Unspecified => "the photo cannot be used",
        AbstentionReason::NoFace => "no face is found in the photo",
        AbstentionReason::FaceTooSmall => "the face is too small",
        AbstentionReason::Blurred => "the face is blurred",
        AbstentionReason::OutOfRange => "the face is too different from the training data",
        AbstentionReason::BadlyExposed => "the face is too dark, too bright or too uniform",
        AbstentionReason::TurnedAway => "the face is turned away",
        AbstentionReason::Occluded => "the face is covered or cut off",
        AbstentionReason::SeveralFaces => "the photo shows several faces, and the request wants a single one",
    });
    texts.collect::<Vec<_>>().join("; ")
}

impl From<PixelError> for AppError {
    fn from(error: PixelError) -> Self {
        match error {
            PixelError::Image(e) => Self::Image(e),
            PixelError::Serve(e) => Self::Serve(e),
        }
    }
}
