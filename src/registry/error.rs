//! What can go wrong with models, versions and aliases.

use crate::{
    error::Kind,
    names::{AliasName, InvalidName, ModelId, VersionName},
    store::StoreError,
};

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// A name that no resource can have.
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
    /// The alias points elsewhere than its caller expected.
    #[error("models/{model}@{alias} points at {}, not at {} as expected", shown(*.found), shown(*.expected))]
    AliasMoved {
        /// The model.
        model: ModelId,
        /// The alias.
        alias: AliasName,
        /// Where the caller expected it; `None`: nowhere.
        expected: Option<u64>,
        /// Where it points; `None`: nowhere.
        found: Option<u64>,
    },
    /// Something still uses what should go.
    #[error("{what} is in use by {by}")]
    InUse {
        /// What should go.
        what: String,
        /// What uses it.
        by: String,
    },
    /// A version's stored parts are damaged.
    #[error("{version} cannot be used: {detail}")]
    CorruptVersion {
        /// The version.
        version: VersionName,
        /// Which part, and how.
        detail: String,
    },
    /// A version that is whole, and describes what this program does not know: a newer one wrote it.
    #[error("this server cannot use {version}: {detail}; use a newer server")]
    UnsupportedVersion {
        /// The version.
        version: VersionName,
        /// What is not known.
        detail: String,
    },
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "nothing".to_owned(), |n| format!("version {n}"))
}

impl RegistryError {
    /// Who must act.
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
