//! What can go wrong with a training, and who must act.

use std::path::PathBuf;

use crate::{
    error::Kind,
    nn::NnError,
    proto::{v1, worker},
};

/// How much of an error is told across the pipe.
const MAX_MESSAGE_CHARS: usize = 4_000;

/// An error of the training layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainingError {
    /// A field of the request is missing or out of range.
    #[error("{field}: {detail}")]
    FieldInvalid {
        /// The field's path, such as `recipe.stages[0].epochs`.
        field: String,
        /// What is expected and what was given.
        detail: String,
    },
    /// A path leads outside the configured roots, by its text or through a link. Whether anything is there is not
    /// looked at.
    #[error("{field}: {path} is not below a configured data root")]
    PathOutsideRoots {
        /// Where the path stood, such as `sources[0].csv.path`.
        field: String,
        /// As it was given.
        path: String,
    },
    /// Nothing is at a path that lies below a root.
    #[error("{field}: {path} does not exist below the configured data roots")]
    FileNotFound {
        /// Where the path stood.
        field: String,
        /// As it was given.
        path: String,
    },
    /// A configured root cannot be used.
    #[error("the data root {} cannot be used: {source}", path.display())]
    RootUnusable {
        /// As configured.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The data cannot be trained on.
    #[error("{detail}")]
    BadData {
        /// What is wrong, with counts.
        detail: String,
        /// What was found, where the data could be read at all.
        report: Option<Box<v1::DataReport>>,
    },
    /// The network or its weights.
    #[error(transparent)]
    Network(#[from] NnError),
    /// The loss became infinite or no number.
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
        /// What it became.
        loss: f64,
    },
    /// The run was asked to stop.
    #[error("the run was cancelled")]
    Cancelled,
    /// The worker process cannot be started.
    #[error("the training process {} cannot be started: {source}", program.display())]
    Launch {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What a server and its worker say to each other is not understood.
    #[error("the training process's pipe: {detail}")]
    Protocol {
        /// What arrived.
        detail: String,
    },
    /// The disk or the file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
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
    /// A field's error.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::FieldInvalid { field: field.into(), detail: detail.into() }
    }

    /// Who must act.
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

    /// What the worker tells its parent of it.
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
        // It may quote what a table holds; the pipe takes only so much.
        let message = self.to_string().chars().take(MAX_MESSAGE_CHARS).collect();
        worker::Failed { kind: kind.into(), message }
    }
}
