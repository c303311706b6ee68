//! From pixels to raw outputs, on time: scheduler, executors, admission.
//!
//! Owns the bounded queues and the threads that own the models. The [`Engine`] is all it knows of a network, so that
//! the scheduler is tested with a fake one. Knows no transport and no store.
//!
//! A photo's way: [`PixelPool`] makes its pixels; [`ServingPool::run`] lets it wait in its version's queue
//! (`scheduler`, which also refuses what cannot be met, by what `latency` has measured); the device's one thread
//! (`executor`) forms a batch when it is free and runs the version's [`Engine`]; [`predictions`] makes the
//! contract's types of the output. A version's way: [`ServingPool::load`] has the device's second thread (`loader`)
//! build the engine, compare it with the version's golden outputs and warm it, while the first goes on serving;
//! [`ServingPool::unload`] lets what waits be answered first. What the threads and the handles share is `device`.

mod answer;
mod detector_engine;
mod device;
mod error;
mod exchange;
mod executor;
mod face_engines;
mod golden;
mod latency;
mod loader;
mod pixel_pool;
mod pool;
mod scheduler;
mod shape;
pub mod testing;
mod torch_engine;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

pub use answer::predictions;
pub(crate) use detector_engine::{cascade_settings, detection_record, points};
pub use error::ServeError;
pub use exchange::{LoadState, LoadedVersion};
pub use golden::{golden_input, golden_pixels};
pub use pixel_pool::{PixelError, PixelPool, PixelPoolSettings};
pub use pool::{Served, ServingPool, ServingSettings};
pub use scheduler::Priority;
pub use torch_engine::TorchEngineLoader;

use crate::{
    nn::{BUCKETS, TensorData, is_out_of_memory},
    proto::store::VersionRecord,
    vision::{DetectedFace, Pixels, Pyramid},
};

/// The smallest bucket that holds `n_images`, or the largest there is.
pub(crate) fn bucket_for(n_images: usize) -> usize {
    BUCKETS.into_iter().find(|&b| b >= n_images).unwrap_or(BUCKETS[BUCKETS.len() - 1])
}

/// What a network says about one image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageOutput {
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
    pub fn new(heads: Vec<Vec<f32>>, embeddings: BTreeMap<String, Vec<f32>>) -> Self {
        Self { heads, embeddings, spreads: Vec::new(), faces: Vec::new() }
    }
}

/// What an engine is asked about.
#[derive(Clone, Debug)]
pub enum Input {
    /// A whole photo or a face, cut to the network's side.
    Square(Pixels),
    /// A photo in which faces are to be found.
    Photo(Pyramid),
}

impl Input {
    /// The side of a square; 0 for a photo.
    #[must_use]
    pub fn side_px(&self) -> u32 {
        match self {
            Self::Square(pixels) => pixels.side_px,
            Self::Photo(_) => 0,
        }
    }

    /// What its pixels hold of memory.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Square(pixels) => pixels.rgb.len(),
            Self::Photo(pyramid) => pyramid.n_bytes(),
        }
    }
}

/// A loaded network, owned by one thread at a time.
pub trait Engine: Send {
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
pub trait EngineLoader: Send + Sync {
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
pub struct EngineSource {
    /// The version's name, `models/{model}/versions/{n}`.
    pub version: String,
    /// Its manifest.
    pub record: VersionRecord,
    /// Its tensors, checksums verified.
    pub tensors: Vec<TensorData>,
}

/// Why an engine did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// No memory on the device for a batch of this size.
    #[error("no device memory: {0}")]
    OutOfMemory(String),
    /// The tensors are not the network's; the words name them.
    #[error("the weights do not fit the network: {0}")]
    WeightsMismatch(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl EngineError {
    /// Of a caught panic: libtorch's layers have no fallible form, and end so when memory runs out.
    pub(crate) fn of_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let words = panic_message(panic);
        if is_out_of_memory(&words) { Self::OutOfMemory(words) } else { Self::Failed(words) }
    }
}

/// The words of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    format!("panicked: {}", crate::error::panic_message(panic).unwrap_or("without a message"))
}
