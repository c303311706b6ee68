//! What can go wrong with collections, faces and searches.

use crate::{error::Kind, store::StoreError};

/// An error of the similarity layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimilarityError {
    /// A field that cannot be used.
    #[error("{field}: {rule}")]
    Invalid {
        /// The request's field.
        field: String,
        /// What is wrong, and what is allowed.
        rule: String,
    },
    /// No such collection.
    #[error("there is no collection {name}")]
    CollectionNotFound {
        /// collections/{c}
        name: String,
    },
    /// No such face.
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
    /// An embedding of another space than the collection's.
    #[error("the embedding is of the space {got}, the collection compares in {expected}")]
    SpaceMismatch {
        /// The embedding's space.
        got: String,
        /// The collection's.
        expected: String,
    },
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SimilarityError {
    pub(crate) fn invalid(field: &str, rule: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), rule: rule.into() }
    }

    /// Who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::Invalid,
            Self::CollectionNotFound { .. } | Self::FaceNotFound { .. } => Kind::NotFound,
            Self::AlreadyExists { .. } | Self::SpaceMismatch { .. } => Kind::Conflict,
            Self::Store(e) => e.kind(),
        }
    }
}
