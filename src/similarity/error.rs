//! The errors of collections, faces and searches.

use crate::{error::Kind, store::StoreError};

/// An error of the similarity layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimilarityError {
    /// A request field is invalid.
    #[error("{field}: {rule}")]
    Invalid {
        /// The request's field.
        field: String,
        /// The fault, and what is allowed.
        rule: String,
    },
    /// The collection does not exist.
    #[error("there is no collection {name}")]
    CollectionNotFound {
        /// collections/{c}
        name: String,
    },
    /// The face does not exist.
    #[error("there is no face {name}")]
    FaceNotFound {
        /// collections/{c}/faces/{f}
        name: String,
    },
    /// The id is taken.
    #[error("{name} exists already")]
    AlreadyExists {
        /// The resource's name.
        name: String,
    },
    /// The embedding is of another space than the collection.
    #[error("the embedding is of the space {got}, the collection compares in {expected}")]
    SpaceMismatch {
        /// The embedding's space.
        got: String,
        /// The collection's space.
        expected: String,
    },
    /// Nobody waits for the search any more: its deadline has passed, or its caller is gone.
    #[error("the deadline passed during the search")]
    Void,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SimilarityError {
    pub(crate) fn invalid(field: &str, rule: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), rule: rule.into() }
    }

    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::Invalid,
            Self::CollectionNotFound { .. } | Self::FaceNotFound { .. } => Kind::NotFound,
            Self::AlreadyExists { .. } | Self::SpaceMismatch { .. } => Kind::Conflict,
            Self::Void => Kind::Cancelled,
            Self::Store(e) => e.kind(),
        }
    }
}
