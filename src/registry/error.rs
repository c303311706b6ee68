//! The errors of models, versions and aliases.

use crate::{
    error::Kind,
    names::{AliasName, InvalidName, ModelId, VersionName},
    store::StoreError,
};

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// An invalid resource name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No such model.
    #[error("there is no model models/{model}")]
    ModelNotFound {
        /// The id.
        model: ModelId,
    },
    /// No such version.
    #[error("there is no version {version}")]
    VersionNotFound {
        /// The name.
        version: VersionName,
    },
    /// No such alias.
    #[error("models/{model} has no alias {alias}")]
    AliasNotFound {
        /// The model.
        model: ModelId,
        /// The alias.
        alias: AliasName,
    },
    /// The alias does not point at the expected version.
    #[error("models/{model}@{alias} points at {}, not at {} as expected", shown(*.found), shown(*.expected))]
    AliasMoved {
        /// The model.
        model: ModelId,
        /// The alias.
        alias: AliasName,
        /// The version expected by the caller; `None` means no alias.
        expected: Option<u64>,
        /// The alias's version; `None` means no alias.
        found: Option<u64>,
    },
    /// The resource to delete or unload is in use.
    #[error("{what} is in use by {by}")]
    InUse {
        /// The resource to delete or unload.
        what: String,
        /// Its user.
        by: String,
    },
    /// A version's stored parts are damaged.
    #[error("{version} cannot be used: {detail}")]
    CorruptVersion {
        /// The version.
        version: VersionName,
        /// The damaged part, and how it is damaged.
        detail: String,
    },
    /// The version is intact, but written by a newer program, with features unknown to this one.
    #[error("this server cannot use {version}: {detail}; use a newer server")]
    UnsupportedVersion {
        /// The version.
        version: VersionName,
        /// The unknown feature.
        detail: String,
    },
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "nothing".to_owned(), |n| format!("version {n}"))
}

impl RegistryError {
    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Name(_) => Kind::Invalid,
            Self::ModelNotFound { .. } | Self::VersionNotFound { .. } | Self::AliasNotFound { .. } => Kind::NotFound,
            Self::AliasMoved { .. } | Self::InUse { .. } | Self::UnsupportedVersion { .. } => Kind::Conflict,
            Self::CorruptVersion { .. } => Kind::Corrupt,
            Self::Store(e) => e.kind(),
        }
    }
}
