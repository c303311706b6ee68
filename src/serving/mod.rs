//! From pixels to raw outputs, on time: scheduler, executors, admission.
//!
//! Owns the bounded queues and the threads that own the models. The [`Engine`] is all it knows of a network, so that
//! the scheduler is tested with a fake one. Knows no transport and no store.

mod error;

use std::{collections::BTreeMap, sync::Arc};

pub use error::ServeError;

use crate::vision::Pixels;

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

/// Why an engine did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// No memory on the device for a batch of this size.
    #[error("no device memory: {0}")]
    OutOfMemory(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}
