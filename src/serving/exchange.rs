//! What the handles, the executor and the loader hand to each other through `device`.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{Engine, EngineSource, ImageOutput, Input, ServeError, scheduler::Batch};

/// What a version is on this device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LoadState {
    /// Not there, or on its way out: what waits for it is still answered, and nothing more is taken.
    #[default]
    Unloaded,
    /// Being built, compared with its golden outputs, and warmed.
    Loading,
    /// Answers.
    Loaded,
    /// Could not be loaded, or fails every image; another load may mend it.
    Failed,
}

/// What a pool is made with.
#[derive(Clone, Debug)]
pub(crate) struct ServingSettings {
    /// The device's name, `cpu` or `cuda:N`, for the threads' names; the loader decides where engines live.
    pub device: String,
    /// Cores that one forward pass may use; 0: all.
    pub n_threads: usize,
    /// Images that may wait for one version.
    pub queue_capacity: usize,
    /// Bytes that these may hold together; one that is larger still may wait alone.
    pub queue_bytes: usize,
    /// Images in one batch at most, rounded down to 1, 2, 4, 8, 16 or 32.
    pub max_batch: usize,
    /// Bytes of tensors that may be loaded together; none: no cap.
    pub memory_budget_bytes: Option<u64>,
}

impl Default for ServingSettings {
    /// All cores of the CPU, 256 images of 512 MiB waiting, batches of 32.
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

/// An answer and where its time went.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Served {
    /// What the network says.
    pub output: ImageOutput,
    /// From the call until the batch began.
    pub queue: Duration,
    /// The batch's forward pass.
    pub inference: Duration,
    /// Images in the batch.
    pub batch_size: usize,
}

/// An image in the queue.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) image: Arc<Input>,
    pub(super) reply: oneshot::Sender<Result<Served, ServeError>>,
}

/// An engine with what the executor must know of it.
pub(super) struct LoadedEngine {
    pub(super) engine: Box<dyn Engine>,
    /// An image that it has answered before: tells a bad engine from bad images.
    pub(super) probe: Arc<Input>,
    /// Single images that failed since the last success.
    pub(super) n_failed: u32,
}

/// What the loader found out about a version.
pub(super) struct Warmed {
    pub(super) engine: LoadedEngine,
    /// Bucket and time of each warm run, in the order of the buckets; the last is the largest that fits the memory.
    pub(super) took: Vec<(usize, Duration)>,
}

/// What the executor found out in a batch.
#[derive(Default)]
pub(super) struct Report {
    /// Images and time of each successful run.
    pub(super) took: Vec<(usize, Duration)>,
    /// The largest batch that the memory allows, when one was too large.
    pub(super) max_batch: Option<usize>,
    /// The engine fails what it answered before.
    pub(super) broken: Option<ServeError>,
}

/// An answer to give once the lock is released.
pub(super) enum Reply {
    Image(oneshot::Sender<Result<Served, ServeError>>, ServeError),
    Change(oneshot::Sender<Result<(), ServeError>>, Result<(), ServeError>),
    Stopped(oneshot::Sender<usize>, usize),
}

impl Reply {
    /// A waiter that has gone away needs none.
    pub(super) fn send(self) {
        match self {
            Self::Image(to, error) => drop(to.send(Err(error))),
            Self::Change(to, result) => drop(to.send(result)),
            Self::Stopped(to, n_left) => drop(to.send(n_left)),
        }
    }
}

/// The executor's next thing to do.
pub(super) enum Turn {
    /// Run this; the engine comes back with `Device::give_back`.
    Run(Batch<Job>, LoadedEngine),
    /// Only answers.
    Answer,
    /// The end.
    Stop,
}

/// The loader's next thing to do.
pub(super) enum Errand {
    Load(Box<EngineSource>),
    /// Build an engine, ask it about the test pattern of this seed, and drop it.
    Probe(Box<Probe>),
    /// Engines whose memory is to be given back, which takes its time.
    Drop(Vec<LoadedEngine>),
    Stop,
}

/// What a version that is not registered yet is asked.
pub(super) struct Probe {
    pub(super) source: EngineSource,
    pub(super) seed: u64,
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, ServeError>>,
}

/// What the caller of a load or an unload waits for.
pub(super) enum Change {
    /// The version's load ends.
    Loaded(oneshot::Receiver<Result<(), ServeError>>),
    /// The version's unload ends.
    Unloaded(oneshot::Receiver<Result<(), ServeError>>),
    /// The version's unload ends; then this may be loaded.
    Gone(oneshot::Receiver<Result<(), ServeError>>, Box<EngineSource>),
}
