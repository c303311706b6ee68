//! Every way a use case can fail.

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

/// Whose the reasons of errors are, as `google.rpc.ErrorInfo` has it.
pub(crate) const ERROR_DOMAIN: &str = "visage";

/// A reason as it travels: without the enum's prefix.
#[must_use]
pub(crate) fn reason_name(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// An error of a use case: its own, or a layer's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// A request field is missing, malformed or out of range.
    #[error("{field}: {description}")]
    FieldInvalid {
        /// The field's path in the request.
        field: String,
        /// What is wrong, and what is allowed.
        description: String,
    },
    /// A page token that this list did not give out.
    #[error("the page token was not given out by the list {list}; start again with an empty token")]
    PageTokenInvalid {
        /// The list's name.
        list: String,
    },
    /// The request id was used with another body.
    #[error("request_id {request_id:?} was used with another request; choose a new one")]
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// No such training run.
    #[error("there is no training run {name}")]
    RunNotFound {
        /// As asked for.
        name: String,
    },
    /// No such operation.
    #[error("there is no operation {name}")]
    OperationNotFound {
        /// As asked for.
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
    /// As many runs wait as may wait.
    #[error("{n_waiting} training runs are waiting, the limit; try again when one has started")]
    TrainingQueueFull {
        /// Runs that wait.
        n_waiting: usize,
    },
    /// The version could not be loaded, and is not tried again yet.
    #[error("{version} could not be loaded: {source}")]
    VersionFailed {
        /// The version.
        version: VersionName,
        /// Why.
        source: Arc<AppError>,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The version cannot do what was asked of it.
    #[error("{version} {what}")]
    UnsupportedByModel {
        /// The version's name.
        version: String,
        /// What it lacks.
        what: String,
    },
    /// A photo has no face that can be enrolled, looked for or compared.
    #[error("{field}: {}", unusable(reasons))]
    FaceUnusable {
        /// Where the photo stood in the request.
        field: &'static str,
        /// Why.
        reasons: Vec<AbstentionReason>,
    },
    /// The published weights that the configuration names cannot be used.
    #[error("models.published_dir: {detail}")]
    PublishedWeights {
        /// What is wrong with them, and what to do.
        detail: String,
    },
    /// The call's deadline passed outside the device's queue.
    #[error("the deadline passed during {during}")]
    DeadlineExceeded {
        /// What was going on.
        during: &'static str,
    },
    /// The server is stopping.
    #[error("the server is stopping; another one, or the same in a moment, will answer")]
    Stopping,
    /// A defect of the server.
    #[error("{0}")]
    Internal(String),
    /// A name that no resource can have.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Of the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Of the serving layer.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Of the picture.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Of one of a request's pictures.
    #[error("{field}: {source}")]
    ImageOf {
        /// Where it stands in the request.
        field: &'static str,
        /// What is wrong with it.
        source: ImageError,
    },
    /// Of the similarity layer.
    #[error(transparent)]
    Similarity(#[from] SimilarityError),
    /// Of the training layer.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// Of networks and weights.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppError {
    /// The same error, told of a field where it is of a picture.
    pub(super) fn of_image(self, field: &'static str) -> Self {
        match self {
            Self::Image(source) => Self::ImageOf { field, source },
            other => other,
        }
    }

    /// A wrong request field.
    pub(crate) fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::FieldInvalid { field: field.into(), description: description.into() }
    }

    /// Who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::FieldInvalid { .. } | Self::PageTokenInvalid { .. } | Self::FaceUnusable { .. } | Self::Name(_) => {
                Kind::Invalid
            }
            Self::RunNotFound { .. } | Self::OperationNotFound { .. } => Kind::NotFound,
            Self::RequestIdReused { .. }
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

/// What is wrong with a photo, in words.
fn unusable(reasons: &[AbstentionReason]) -> String {
    let words = reasons.iter().map(|reason| match reason {
        AbstentionReason::Unspecified => "the photo cannot be used",
        AbstentionReason::NoFace => "no face is found in the photo",
        AbstentionReason::FaceTooSmall => "the face is too small",
        AbstentionReason::Blurred => "the face is blurred",
        AbstentionReason::OutOfRange => "the face is too unlike those that the model knows",
        AbstentionReason::BadlyExposed => "the face is too dark, too bright or too even",
        AbstentionReason::TurnedAway => "the face is turned away",
        AbstentionReason::Occluded => "the face is covered or cut off",
        AbstentionReason::SeveralFaces => "the photo shows several faces, and a single one was asked for",
    });
    words.collect::<Vec<_>>().join("; ")
}

impl From<PixelError> for AppError {
    fn from(error: PixelError) -> Self {
        match error {
            PixelError::Image(e) => Self::Image(e),
            PixelError::Serve(e) => Self::Serve(e),
        }
    }
}
