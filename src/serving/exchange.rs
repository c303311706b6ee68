//! The messages that the handles, the executor and the loader exchange through `device`.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{Engine, EngineSource, ImageOutput, Input, ServeError, scheduler::Batch};

/// A version's state on this device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LoadState {
    /// Absent or draining: queued images are still answered, new ones are refused.
    #[default]
    Unloaded,
    /// Being built, compared with its golden outputs, and warmed.
    Loading,
    /// Serving.
    Loaded,
    /// Failed to load, or fails every image; another load may repair it.
    Failed,
}

/// The settings of a pool.
#[derive(Clone, Debug)]
pub(crate) struct ServingSettings {
    /// The device's name, `cpu` or `cuda:N`, used in thread names only; the loader decides where engines live.
    pub device: String,
    /// Cores that one forward pass may use; 0: all.
    pub n_threads: usize,
    /// Images that may wait for one version.
    pub queue_capacity: usize,
    /// Bytes that these may hold together; a single larger image may wait alone.
    pub queue_bytes: usize,
    /// The largest batch, rounded down to 1, 2, 4, 8, 16 or 32.
    pub max_batch: usize,
    /// Bytes of tensors that may be loaded together; none: no cap.
    pub memory_budget_bytes: Option<u64>,
}

impl Default for ServingSettings {
    /// All cores of the CPU; 256 images in 512 MiB may wait; batches of 32.
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            n_threads: 0,
            queue_capacity: 256,
            queue_bytes: 512 << 20,
            max_batch: 32,
            memory_budget_bytes: None,
        }
    }
}

/// An answer, with the time spent on it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Served {
    /// The network's output.
    pub output: ImageOutput,
    /// Time from the call until the batch began.
    pub queue: Duration,
    /// Time of the batch's forward pass.
    pub inference: Duration,
    /// Images in the batch.
    pub batch_size: usize,
}

/// An image in the queue.
#[derive(Debug)]
pub(super) struct QueuedImage {
    pub(super) image: Arc<Input>,
    pub(super) reply: oneshot::Sender<Result<Served, ServeError>>,
}

/// An engine with the executor's records about it.
pub(super) struct LoadedEngine {
    pub(super) engine: Box<dyn Engine>,
    /// An image it has answered before; a failure on it shows that the engine is bad, not the images.
    pub(super) probe: Arc<Input>,
    /// Single images that failed since the last success.
    pub(super) n_failed: u32,
}

/// The loader's findings about a version.
pub(super) struct Warmed {
    pub(super) engine: LoadedEngine,
    /// Bucket and time of each warm run, in the order of the buckets; the last is the largest that fits the memory.
    pub(super) took: Vec<(usize, Duration)>,
}

/// The executor's findings in a batch.
#[derive(Default)]
pub(super) struct Report {
    /// Images and time of each successful run.
    pub(super) took: Vec<(usize, Duration)>,
    /// The largest batch that the memory allows, when one was too large.
    pub(super) max_batch: Option<usize>,
    /// The error of an engine that fails on an image it answered before.
    pub(super) broken: Option<ServeError>,
}

/// A reply to send once the lock is released.
pub(super) enum Reply {
    Image(oneshot::Sender<Result<Served, ServeError>>, ServeError),
    Change(oneshot::Sender<Result<(), ServeError>>, Result<(), ServeError>),
    Stopped(oneshot::Sender<usize>, usize),
}

impl Reply {
    /// Sends the reply. A waiter that has left needs none.
    pub(super) fn send(self) {
        match self {
            Self::Image(to, error) => drop(to.send(Err(error))),
            Self::Change(to, result) => drop(to.send(result)),
            Self::Stopped(to, n_left) => drop(to.send(n_left)),
        }
    }
}

/// The executor's next task.
pub(super) enum ExecutorTask {
    /// Run this batch, then return the engine with `Device::return_engine`.
    Run(Batch<QueuedImage>, LoadedEngine),
    /// Only send replies.
    Reply,
    /// End the thread.
    Stop,
}

/// The loader's next task.
pub(super) enum LoaderTask {
    Load(Box<EngineSource>),
    /// Build an engine, run the test pattern of this seed, and drop the engine.
    Probe(Box<Probe>),
    /// Drop engines, which takes time to release their memory.
    Drop(Vec<LoadedEngine>),
    Stop,
}

/// A test run of a version that is not registered yet.
pub(super) struct Probe {
    pub(super) source: EngineSource,
    pub(super) seed: u64,
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, ServeError>>,
}

/// A change that the caller of a load or an unload waits for.
pub(super) enum Change {
    /// The load ends.
    Loaded(oneshot::Receiver<Result<(), ServeError>>),
    /// The unload ends.
    Unloaded(oneshot::Receiver<Result<(), ServeError>>),
    /// The unload ends; then this source may be loaded.
    Gone(oneshot::Receiver<Result<(), ServeError>>, Box<EngineSource>),
}
