//! The errors of training, and who must act on them.

use std::path::PathBuf;

use crate::{
    error::Kind,
    nn::NnError,
    proto::{v1, worker},
};

/// The maximum length of an error message sent over the pipe.
const MAX_MESSAGE_CHARS: usize = 4_000;

/// An error of the training layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainingError {
    /// A field of the request is missing or out of range.
    #[error("{field}: {detail}")]
    FieldInvalid {
        /// The field's path, such as `recipe.stages[0].epochs`.
        field: String,
        /// The expected and the given value.
        detail: String,
    },
    /// A path leads outside the training roots, by its text or through a link. Whether it exists is not checked.
    #[error("{field}: {path} is not below a configured training root")]
    PathOutsideRoots {
        /// The path's place in the request, such as `sources[0].csv.path`.
        field: String,
        /// As given.
        path: String,
    },
    /// A path below a training root does not exist.
    #[error("{field}: {path} does not exist below the configured training roots")]
    FileNotFound {
        /// The path's place in the request.
        field: String,
        /// As given.
        path: String,
    },
    /// A training root cannot be used.
    #[error("the training root {} cannot be used: {source}", path.display())]
    RootUnusable {
        /// As configured.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The data is unfit for training.
    #[error("{detail}")]
    BadData {
        /// The fault, with counts.
        detail: String,
        /// The report on the data, if it could be read.
        report: Option<Box<v1::DataReport>>,
    },
    /// An error of the network or its weights.
    #[error(transparent)]
    Network(#[from] NnError),
    /// The loss became infinite or NaN.
    #[error(
        "the loss became {loss} in stage {stage}, epoch {epoch}, step {step}; a lower max_learning_rate usually helps"
    )]
    Diverged {
        /// 1-based.
        stage: usize,
        /// 1-based.
        epoch: usize,
        /// 1-based.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
    /// The worker process cannot be started.
    #[error("the training process {} cannot be started: {source}", program.display())]
    Launch {
        /// The program.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A message between a server and its worker cannot be understood.
    #[error("the training process's pipe: {detail}")]
    Protocol {
        /// What arrived.
        detail: String,
    },
    /// The disk or the file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A defect.
    #[error("{detail}")]
    Internal {
        /// For the log.
        detail: String,
    },
}

impl TrainingError {
    /// Creates an error about a field.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::FieldInvalid { field: field.into(), detail: detail.into() }
    }

    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::FieldInvalid { .. }
            | Self::PathOutsideRoots { .. }
            | Self::BadData { .. }
            | Self::RootUnusable { .. }
            | Self::Diverged { .. } => Kind::Invalid,
            Self::FileNotFound { .. } => Kind::NotFound,
            Self::Network(error) => error.kind(),
            Self::Cancelled => Kind::Cancelled,
            Self::Launch { .. } | Self::Protocol { .. } | Self::Io { .. } | Self::Internal { .. } => Kind::Internal,
        }
    }

    /// Converts to the worker's message for its parent.
    #[must_use]
    pub(crate) fn to_failed(&self) -> worker::Failed {
        let kind = match self {
            Self::FieldInvalid { .. } => worker::FailureKind::BadRecipe,
            Self::PathOutsideRoots { .. } | Self::FileNotFound { .. } | Self::BadData { .. } => {
                worker::FailureKind::BadData
            }
            Self::Network(error) => match error.kind() {
                Kind::Overloaded => worker::FailureKind::OutOfMemory,
                Kind::Invalid => worker::FailureKind::BadRecipe,
                Kind::NotFound | Kind::Conflict | Kind::Cancelled | Kind::Corrupt | Kind::Internal => {
                    worker::FailureKind::Internal
                }
            },
            Self::Diverged { .. } => worker::FailureKind::Diverged,
            Self::Cancelled => worker::FailureKind::Cancelled,
            Self::RootUnusable { .. }
            | Self::Launch { .. }
            | Self::Protocol { .. }
            | Self::Io { .. }
            | Self::Internal { .. } => worker::FailureKind::Internal,
        };
        // It may quote a table's content; the pipe limits the length.
        let message = self.to_string().chars().take(MAX_MESSAGE_CHARS).collect();
        worker::Failed { kind: kind.into(), message }
    }
}
