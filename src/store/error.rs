//! The errors of stored bytes.

use std::{path::PathBuf, sync::Arc};

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
        /// The format found.
        found: u32,
        /// The newest supported format.
        supported: u32,
    },
    /// The bytes differ from those written.
    #[error("damaged: {what}; {affects}")]
    Corrupt {
        /// The damaged record, blob or file.
        what: String,
        /// The effect, and the remedy.
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
    /// The disk or the file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The disk is nearly full.
    #[error(
        "the disk of {} has {} MiB left, fewer than the {} MiB of store.reserve_bytes, below half of which deletions are refused, too; make room, and writes are taken again", path.display(), free_bytes >> 20, reserve_bytes >> 20
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// The disk's free bytes.
        free_bytes: u64,
        /// The bytes that writes leave free.
        reserve_bytes: u64,
    },
    /// The disk has no room for a second engine.
    #[error("the disk of {} has {} MiB left, but rewriting the store needs {} MiB for a while; make room", path.display(), free_bytes >> 20, needed_bytes >> 20)]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// The disk's free bytes.
        free_bytes: u64,
        /// The bytes needed.
        needed_bytes: u64,
    },
    /// The disk failed earlier and has not recovered.
    #[error("writes are refused until the disk takes them again: {why}")]
    WritesFail {
        /// What failed.
        why: Arc<str>,
    },
    /// The store key is missing, or opens another store.
    #[error("the key of the store, {}: {why}; nothing was changed", path.display())]
    Key {
        /// The file of the store key, or of the keys that it wraps.
        path: PathBuf,
        /// Why it cannot be used.
        why: String,
    },
    /// The import's target store is not empty.
    #[error("the store is not empty; import into an empty data folder")]
    NotEmpty,
    /// The export cannot be read.
    #[error("not a complete visage export: {0}")]
    BadExport(String),
}

impl StoreError {
    /// Returns true if the disk takes no writes at the moment. Nothing was changed, and a later try may succeed.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::WritesFail { .. })
    }

    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Conflict { .. } | Self::Locked { .. } | Self::NotEmpty => Kind::Conflict,
            Self::NewerFormat { .. } | Self::BadExport(_) | Self::Key { .. } => Kind::Invalid,
            Self::Corrupt { .. } => Kind::Corrupt,
            Self::Full { .. } | Self::NoRoom { .. } => Kind::Overloaded,
            Self::Io { .. } | Self::WritesFail { .. } => Kind::Internal,
        }
    }
}
