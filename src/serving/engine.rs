//! A network as the scheduler sees it: what goes in, what comes out, and how it is built.
//!
//! The core of this layer knows networks by these types alone, so that a fake engine can stand in for a real one.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    names::VersionName,
    nn::{BUCKETS, Golden, NetworkKind, NnError, TensorData, is_out_of_memory},
    vision::{DetectedFace, DetectorSettings, Pixels, Pyramid},
};

/// What a network says about one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ImageOutput {
    /// One vector a head, in the version's order: the number of a regression, or the probabilities of a
    /// classification (they sum to one).
    pub heads: Vec<Vec<f32>>,
    /// The layers that serve as embeddings, by name, as the network gives them (not normalised).
    pub embeddings: BTreeMap<String, Vec<f32>>,
    /// One a head, in the version's order: the standard deviation of the distribution that the head answers with, in
    /// its unit; none for a head that answers with a number alone. Empty when no head has one.
    pub spreads: Vec<Option<f32>>,
    /// What a detector found, in pixels of the photo as it was looked at; the largest first.
    pub faces: Vec<DetectedFace>,
}

impl ImageOutput {
    /// The answers of heads and embeddings, with nothing else.
    #[must_use]
    pub(crate) fn new(heads: Vec<Vec<f32>>, embeddings: BTreeMap<String, Vec<f32>>) -> Self {
        Self { heads, embeddings, spreads: Vec::new(), faces: Vec::new() }
    }
}

/// What a network reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InputKind {
    /// A whole photo or a face, cut to a square.
    Square {
        /// The square's side in pixels.
        side_px: u32,
    },
    /// A photo in which faces are to be found.
    Photo(DetectorSettings),
}

/// An image for a network.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A whole photo or a face, cut to the network's side.
    Square(Pixels),
    /// A photo in which faces are to be found.
    Photo(Pyramid),
}

impl Input {
    /// Whether a network of this kind reads it.
    pub(super) fn is_of(&self, kind: &InputKind) -> bool {
        match (self, kind) {
            (Self::Square(pixels), InputKind::Square { side_px }) => {
                pixels.side_px == *side_px && pixels.rgb.len() as u64 == u64::from(*side_px).pow(2) * 3
            }
            (Self::Photo(_), InputKind::Photo(_)) => true,
            (Self::Square(_), InputKind::Photo(_)) | (Self::Photo(_), InputKind::Square { .. }) => false,
        }
    }

    /// What its pixels hold of memory.
    #[must_use]
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Square(pixels) => pixels.rgb.len(),
            Self::Photo(pyramid) => pyramid.n_bytes(),
        }
    }

    /// The pixels of a square.
    ///
    /// # Errors
    /// [`EngineError::Failed`] for a photo.
    pub(super) fn square(&self) -> Result<&[u8], EngineError> {
        match self {
            Self::Square(pixels) => Ok(&pixels.rgb),
            Self::Photo(_) => Err(EngineError::Failed("the network reads squares; it was given a photo".to_owned())),
        }
    }

    /// The photo in which faces are to be found.
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
    /// Answers a batch; all inputs are of the version's kind and side.
    ///
    /// # Errors
    /// When the batch as a whole cannot be answered; the caller then tries smaller ones.
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError>;

    /// The numbers that identify the network's answer to one input: what golden outputs hold. The heads' outputs in
    /// order; of a network without heads, its embeddings'.
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

    /// The most inputs that one run is worth.
    fn max_batch(&self) -> usize {
        BUCKETS[BUCKETS.len() - 1]
    }
}

/// Builds engines. Called on the loader thread only.
pub(crate) trait EngineLoader: Send + Sync {
    /// Builds a version's engine on the device.
    ///
    /// # Errors
    /// When the tensors do not fit the network, the device is not there or has no memory.
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError>;

    /// Called once at the start of each thread that will touch engines, to set how many cores its kernels may use.
    fn enter_thread(&self, _n_threads: usize) {}
}

/// All that makes a version's engine. Free of any handle to the store, so that it can be dropped once it is built.
#[derive(Clone, Debug)]
pub(crate) struct EngineSource {
    /// The version.
    pub version: VersionName,
    /// Its network.
    pub network: NetworkKind,
    /// What the network reads.
    pub input: InputKind,
    /// The layers whose outputs it gives as embeddings.
    pub embedding_layers: Vec<String>,
    /// What it answered when it was registered; none for one that is not registered yet.
    pub golden: Option<Golden>,
    /// Its tensors, checksums verified.
    pub tensors: Vec<TensorData>,
}

/// Why an engine did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EngineError {
    /// No memory on the device for a batch of this size.
    #[error("no device memory: {0}")]
    OutOfMemory(String),
    /// The tensors are not the network's; the message names them.
    #[error("the weights do not fit the network: {0}")]
    WeightsMismatch(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl EngineError {
    /// The error of a caught panic. libtorch's layers have no fallible form, and panic when memory runs out.
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

/// The message of a caught panic, for an error.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    format!("panicked: {}", crate::error::panic_message(panic).unwrap_or("without a message"))
}
