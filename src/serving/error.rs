//! Why a device did not answer a photo.

use std::{fmt, time::Duration};

use crate::{error::Kind, names::VersionName};

/// A place where a photo waits and is processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The pixel pool, which decodes photos and crops faces.
    Pixels,
    /// The queue of a version.
    Version(VersionName),
}

impl From<VersionName> for Stage {
    fn from(version: VersionName) -> Self {
        Self::Version(version)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pixels => f.write_str("the decoding of photos"),
            Self::Version(version) => version.fmt(f),
        }
    }
}

/// An error of the serving layer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ServeError {
    /// The queue is full, by number of images or by bytes.
    #[error("{stage} has {n_waiting} images waiting and no room for another")]
    Overloaded {
        /// The queue.
        stage: Stage,
        /// The queue's length.
        n_waiting: usize,
        /// Expected time until a place is free.
        retry_after: Duration,
    },
    /// The deadline passed while the image waited.
    #[error("the deadline passed before {stage} could answer")]
    DeadlineExceeded {
        /// Where it waited.
        stage: Stage,
    },
    /// Refused at once: by the measured times, the deadline cannot be met.
    #[error("{version} needs about {needed:?}, the deadline leaves {left:?}")]
    DeadlineUnmeetable {
        /// The version.
        version: VersionName,
        /// Expected time to an answer.
        needed: Duration,
        /// Time to the deadline.
        left: Duration,
    },
    /// The version is not loaded, or was unloaded meanwhile.
    #[error("{version} is not loaded")]
    NotLoaded {
        /// The version.
        version: VersionName,
    },
    /// The device has no memory even for one image.
    #[error("{version}: no device memory: {detail}")]
    DeviceMemory {
        /// The version.
        version: VersionName,
        /// libtorch's message.
        detail: String,
    },
    /// The work failed on this image alone, or panicked.
    #[error("{stage} failed: {detail}")]
    EngineFailed {
        /// Where it failed.
        stage: Stage,
        /// For the log.
        detail: String,
    },
    /// The operating system could not start a thread.
    #[error("cannot start the thread {name}: {detail}")]
    NoThread {
        /// The thread's name.
        name: String,
        /// The system's message.
        detail: String,
    },
    /// When the version was loaded, its outputs differed from its golden outputs.
    #[error("{version} does not reproduce the outputs recorded at its registration: {detail}")]
    GoldenMismatch {
        /// The version.
        version: VersionName,
        /// Difference and tolerance.
        detail: String,
    },
    /// The tensors do not fit the version's network.
    #[error("the weights of {version} do not fit its network: {detail}")]
    WeightsMismatch {
        /// The version.
        version: VersionName,
        /// Which tensors, and how they differ.
        detail: String,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

impl ServeError {
    /// Returns who must act.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Overloaded { .. } | Self::DeviceMemory { .. } | Self::Stopping => Kind::Overloaded,
            Self::DeadlineExceeded { .. } | Self::DeadlineUnmeetable { .. } => Kind::Cancelled,
            Self::NotLoaded { .. } => Kind::Conflict,
            Self::GoldenMismatch { .. } | Self::WeightsMismatch { .. } => Kind::Corrupt,
            Self::EngineFailed { .. } | Self::NoThread { .. } => Kind::Internal,
        }
    }
}
