//! What can go wrong with stored bytes.

use std::path::PathBuf;

use super::Table;
use crate::error::Kind;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process has the store open.
    #[error("the store at {} is open in another process; stop that server first", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// The store was written by a newer Visage.
    #[error(
        "the store has format {found}, this version of visage reads up to {supported}; install the newer visage again, or import an export of it"
    )]
    NewerFormat {
        /// Format found.
        found: u32,
        /// The newest that can be read.
        supported: u32,
    },
    /// Bytes are not what was written.
    #[error("damaged: {what}; {affects}")]
    Corrupt {
        /// Which record, blob or file.
        what: String,
        /// What that means, and what can be done.
        affects: String,
    },
    /// A batch's condition did not hold.
    #[error("the record {table:?}/{key} has changed meanwhile")]
    Conflict {
        /// The condition's table.
        table: Table,
        /// The condition's key, printable.
        key: String,
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
    /// An import into a store that has something.
    #[error("the store is not empty; import into an empty data folder")]
    NotEmpty,
    /// An export that cannot be read.
    #[error("not a complete visage export: {0}")]
    BadExport(String),
}

impl StoreError {
    /// Who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Conflict { .. } | Self::Locked { .. } | Self::NotEmpty => Kind::Conflict,
            Self::NewerFormat { .. } | Self::BadExport(_) => Kind::Invalid,
            Self::Corrupt { .. } => Kind::Corrupt,
            Self::Io { .. } => Kind::Internal,
        }
    }
}
