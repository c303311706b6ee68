//! Errors of networks and weights.

use std::path::PathBuf;

use crate::error::Kind;

/// An error of the network layer.
#[derive(Debug, thiserror::Error)]
pub enum NnError {
    /// The weights do not fit the network.
    #[error("the weights do not fit the network: {detail}")]
    WeightsMismatch {
        /// The tensors, with got and expected.
        detail: String,
    },
    /// A weights file cannot be read.
    #[error("{}: not a readable weights file: {detail}", path.display())]
    WeightsUnreadable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        detail: String,
    },
    /// The device named in the configuration does not exist.
    #[error("device {device} is not available: {detail}")]
    DeviceUnavailable {
        /// The device's name in the configuration.
        device: String,
        /// Why, and what to do.
        detail: String,
    },
    /// An allocation failed.
    #[error("the device has no memory for this: {detail}")]
    OutOfMemory {
        /// libtorch's message.
        detail: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {detail}")]
    Torch {
        /// libtorch's message.
        detail: String,
    },
}

/// Returns true if this message of libtorch or the system means out of memory.
pub(crate) fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["out of memory", "not enough memory", "can't allocate memory"].iter().any(|sign| message.contains(sign))
}

impl NnError {
    /// Returns who must act.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::WeightsMismatch { .. } | Self::WeightsUnreadable { .. } => Kind::Invalid,
            Self::OutOfMemory { .. } => Kind::Overloaded,
            Self::DeviceUnavailable { .. } | Self::Torch { .. } => Kind::Internal,
        }
    }
}
