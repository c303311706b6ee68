//! Why a photo got no answer from a device.

use std::time::Duration;

use crate::error::Kind;

/// An error of the serving layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    /// The version's queue is full, in images or in their bytes.
    #[error("{version} has {n_waiting} images waiting and no room for another")]
    Overloaded {
        /// The version's name.
        version: String,
        /// The queue's length.
        n_waiting: usize,
        /// When a place is expected.
        retry_after: Duration,
    },
    /// The deadline passed while the image waited.
    #[error("the deadline passed before {version} could answer")]
    DeadlineExceeded {
        /// The version's name.
        version: String,
    },
    /// Refused at once: what is measured says it cannot be met.
    #[error("{version} needs about {needed:?}, the deadline leaves {left:?}")]
    DeadlineUnmeetable {
        /// The version's name.
        version: String,
        /// Expected time to an answer.
        needed: Duration,
        /// Time to the deadline.
        left: Duration,
    },
    /// The caller went away.
    #[error("the caller cancelled")]
    Cancelled,
    /// The version is not loaded, or has been unloaded meanwhile.
    #[error("{version} is not loaded")]
    NotLoaded {
        /// The version's name.
        version: String,
    },
    /// The device has no memory even for one image.
    #[error("{version}: no device memory: {detail}")]
    DeviceMemory {
        /// The version's name.
        version: String,
        /// libtorch's words.
        detail: String,
    },
    /// The network failed on this image alone, or panicked.
    #[error("{version} failed: {detail}")]
    EngineFailed {
        /// The version's name.
        version: String,
        /// For the log.
        detail: String,
    },
    /// The version's golden outputs were not met when it was loaded.
    #[error("{version} does not answer as it did when it was registered: {detail}")]
    GoldenMismatch {
        /// The version's name.
        version: String,
        /// Difference and tolerance.
        detail: String,
    },
    /// The tensors are not those of the version's network.
    #[error("the weights of {version} do not fit its network: {detail}")]
    WeightsMismatch {
        /// The version's name.
        version: String,
        /// Which tensors, and how.
        detail: String,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

impl ServeError {
    /// Who must act.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Overloaded { .. } | Self::DeviceMemory { .. } | Self::Stopping => Kind::Overloaded,
            Self::DeadlineExceeded { .. } | Self::DeadlineUnmeetable { .. } | Self::Cancelled => Kind::Cancelled,
            Self::NotLoaded { .. } => Kind::Conflict,
            Self::GoldenMismatch { .. } | Self::WeightsMismatch { .. } => Kind::Corrupt,
            Self::EngineFailed { .. } => Kind::Internal,
        }
    }
}
