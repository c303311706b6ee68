//! From pixels to raw outputs, on time: scheduler, executors, admission.
//!
//! Owns the bounded queues and the threads that own the models. The [`Engine`] is all it knows of a network, so that
//! the scheduler is tested with a fake one. Knows no transport and no store.
//!
//! A photo's way: [`DecodePool`] makes its pixels; [`ServingPool::run`] lets it wait in its version's queue
//! (`scheduler`, which also refuses what cannot be met, by what `latency` has measured); the device's one thread
//! (`executor`) forms a batch when it is free and runs the version's [`Engine`]; [`predictions`] makes the
//! contract's types of the output. A version's way: [`ServingPool::load`] has the device's second thread (`loader`)
//! build the engine, compare it with the version's golden outputs and warm it, while the first goes on serving;
//! [`ServingPool::unload`] lets what waits be answered first. What the threads and the handles share is `device`.

mod answer;
mod decode_pool;
mod device;
mod error;
mod exchange;
mod executor;
mod golden;
mod latency;
mod loader;
mod pool;
mod scheduler;
pub mod testing;
mod torch_engine;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

pub use answer::predictions;
pub use decode_pool::{DecodeError, DecodePool, DecodePoolSettings, DecodedPhoto};
pub use error::ServeError;
pub use exchange::{LoadState, LoadedVersion};
pub use golden::golden_pixels;
pub use pool::{Served, ServingPool, ServingSettings};
pub use scheduler::Priority;
pub use torch_engine::TorchEngineLoader;

use crate::{
    nn::{BUCKETS, TensorData},
    proto::store::VersionRecord,
    vision::Pixels,
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
}

/// A loaded network, owned by one thread at a time.
pub trait Engine: Send {
    /// Answers a batch; all images have the network's side.
    ///
    /// # Errors
    /// When the batch as a whole cannot be answered; the caller then tries smaller ones.
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<Vec<ImageOutput>, EngineError>;
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
        let lower = words.to_lowercase();
        if ["out of memory", "not enough memory", "can't allocate memory"].iter().any(|sign| lower.contains(sign)) {
            Self::OutOfMemory(words)
        } else {
            Self::Failed(words)
        }
    }
}

/// The words of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", words.unwrap_or_else(|| "without a message".to_owned()))
}
