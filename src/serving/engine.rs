//! A network as the scheduler sees it: its input, its output, and how it is built.
//!
//! The scheduler and the pool know networks by these types alone, so a fake engine can replace a real one.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    names::VersionName,
    nn::{BUCKETS, Golden, NetworkKind, NnError, TensorData, is_out_of_memory},
    vision::{DetectedFace, DetectorSettings, Pixels, Pyramid},
};

/// A network's output for one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ImageOutput {
    /// One vector per head, in the version's order: the number of a regression, or the probabilities of a
    /// classification (they sum to one).
    pub heads: Vec<Vec<f32>>,
    /// The outputs of the embedding layers, by layer name, not normalised.
    pub embeddings: BTreeMap<String, Vec<f32>>,
    /// One per head, in the version's order: the standard deviation of the head's predicted distribution, in its unit;
    /// none for a head that predicts only a number. Empty when no head has one.
    pub spreads: Vec<Option<f32>>,
    /// The faces that a detector found, the largest first, in pixels of the scaled photo that it searched.
    pub faces: Vec<DetectedFace>,
}

impl ImageOutput {
    /// Creates an output with heads and embeddings only.
    #[must_use]
    pub(crate) fn new(heads: Vec<Vec<f32>>, embeddings: BTreeMap<String, Vec<f32>>) -> Self {
        Self { heads, embeddings, spreads: Vec::new(), faces: Vec::new() }
    }
}

/// The kind of image that a network reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InputKind {
    /// A whole photo or a face, resized to a square.
    Square {
        /// The square's side in pixels.
        side_px: u32,
    },
    /// A photo to search for faces.
    Photo(DetectorSettings),
}

/// An image for a network.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A whole photo or a face, resized to the network's side.
    Square(Pixels),
    /// A photo to search for faces.
    Photo(Pyramid),
}

impl Input {
    /// Returns true if a network of this kind reads it.
    pub(super) fn is_of(&self, kind: &InputKind) -> bool {
        match (self, kind) {
            (Self::Square(pixels), InputKind::Square { side_px }) => {
                pixels.side_px == *side_px && pixels.rgb.len() as u64 == u64::from(*side_px).pow(2) * 3
            }
            (Self::Photo(_), InputKind::Photo(_)) => true,
            (Self::Square(_), InputKind::Photo(_)) | (Self::Photo(_), InputKind::Square { .. }) => false,
        }
    }

    /// The memory that its pixels occupy.
    #[must_use]
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Square(pixels) => pixels.rgb.len(),
            Self::Photo(pyramid) => pyramid.n_bytes(),
        }
    }

    /// Returns the pixels of a square.
    ///
    /// # Errors
    /// [`EngineError::Failed`] for a photo.
    pub(super) fn square(&self) -> Result<&[u8], EngineError> {
        match self {
            Self::Square(pixels) => Ok(&pixels.rgb),
            Self::Photo(_) => Err(EngineError::Failed("the network reads squares; it was given a photo".to_owned())),
        }
    }

    /// Returns the photo to search for faces.
    ///
    /// # Errors
    /// [`EngineError::Failed`] for a square.
    pub(super) fn photo(&self) -> Result<&Pyramid, EngineError> {
        match self {
            Self::Photo(pyramid) => Ok(pyramid),
            Self::Square(_) => Err(EngineError::Failed("the detector reads photos; it was given a square".to_owned())),
        }
    }
}

/// A loaded network, owned by one thread at a time.
pub(crate) trait Engine: Send {
    /// Answers a batch of inputs, all of the version's kind and side.
    ///
    /// # Errors
    /// Fails when the batch as a whole cannot be answered; the caller then tries smaller ones.
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError>;

    /// Returns the numbers that identify the network's answer to one input, for golden outputs: the heads' outputs in
    /// order, or the embeddings' if there are no heads.
    ///
    /// # Errors
    /// As [`Engine::run`].
    fn fingerprint(&mut self, input: &Arc<Input>) -> Result<Vec<f32>, EngineError> {
        let outputs = self.run(std::slice::from_ref(input))?;
        let Some(output) = outputs.into_iter().next() else {
            return Err(EngineError::Failed("no answer for one image".to_owned()));
        };
        let embeddings = || output.embeddings.into_values().flatten().collect();
        Ok(if output.heads.is_empty() { embeddings() } else { output.heads.concat() })
    }

    /// The largest batch that one run gains from.
    fn max_batch(&self) -> usize {
        BUCKETS[BUCKETS.len() - 1]
    }
}

/// Builds engines, on the loader thread only.
pub(crate) trait EngineLoader: Send + Sync {
    /// Builds a version's engine on the device.
    ///
    /// # Errors
    /// Fails when the tensors do not fit the network, or the device is missing or has no memory.
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError>;

    /// Sets how many cores a thread's kernels may use. Called once at the start of each thread that will touch engines.
    fn enter_thread(&self, _n_threads: usize) {}
}

/// All that is needed to build a version's engine. It holds no handle to the store, so it can be dropped after the
/// build.
#[derive(Clone, Debug)]
pub(crate) struct EngineSource {
    /// The version.
    pub version: VersionName,
    /// Its network.
    pub network: NetworkKind,
    /// The kind of image that the network reads.
    pub input: InputKind,
    /// The layers whose outputs serve as embeddings.
    pub embedding_layers: Vec<String>,
    /// The outputs recorded at registration; none before it.
    pub golden: Option<Golden>,
    /// Its tensors, checksums verified.
    pub tensors: Vec<TensorData>,
}

/// An error of an engine.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EngineError {
    /// No memory on the device for a batch of this size.
    #[error("no device memory: {0}")]
    OutOfMemory(String),
    /// The tensors do not fit the network; the message names them.
    #[error("the weights do not fit the network: {0}")]
    WeightsMismatch(String),
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

impl EngineError {
    /// Converts a caught panic. libtorch's layers have no fallible form, and panic when memory runs out.
    pub(super) fn of_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic_message(panic);
        if is_out_of_memory(&message) { Self::OutOfMemory(message) } else { Self::Failed(message) }
    }
}

impl From<NnError> for EngineError {
    fn from(error: NnError) -> Self {
        match error {
            NnError::OutOfMemory { detail } => Self::OutOfMemory(detail),
            NnError::WeightsMismatch { detail } => Self::WeightsMismatch(detail),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Formats the message of a caught panic for an error.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    format!("panicked: {}", crate::error::panic_message(panic).unwrap_or("without a message"))
}
