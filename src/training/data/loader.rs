//! Images in batches: decoded on all cores, and kept in memory up to a budget.
//!
//! Images beyond the budget are decoded again for each pass, a few batches ahead of the network. The batches are the
//! same either way. Pixels come from the same functions as in serving, so the two cannot drift apart.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};

use super::{
    dataset::{Dataset, LoadPhase, LoadProgress, LoadWatch},
    image_file,
    split::Split,
};
use crate::{training::TrainingError, vision::Pixels};

/// The resources for loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoaderOptions {
    /// Threads that decode; 0: one per core.
    pub n_threads: usize,
    /// The maximum number of pixels in an image.
    pub max_pixels: u64,
    /// Bytes of decoded images kept in memory, all parts together.
    pub memory_budget_bytes: u64,
    /// Batches decoded ahead of the one in use, for images that are not kept in memory.
    pub n_prefetch: usize,
}

impl LoaderOptions {
    /// All cores, a quarter of the memory that is free now, four batches ahead.
    #[must_use]
    pub(crate) fn with_max_pixels(max_pixels: u64) -> Self {
        Self { n_threads: 0, max_pixels, memory_budget_bytes: free_memory_bytes() / 4, n_prefetch: 4 }
    }
}

/// The sizes at which parts are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    /// For training images: larger than the network's input by the share that a crop may cut off.
    pub train_px: u32,
    /// For the other parts: the network's input, as in serving.
    pub eval_px: u32,
}

impl Sides {
    /// Computes the sizes for a network input of `image_size_px` and random crops of at most `crop_fraction` (0 to 0.5)
    /// of each side.
    #[must_use]
    pub(crate) fn new(image_size_px: u32, crop_fraction: f64) -> Self {
        let train_px = (f64::from(image_size_px) / (1.0 - crop_fraction.clamp(0.0, 0.5))).ceil();
        // At most twice the input.
        Self { train_px: train_px as u32, eval_px: image_size_px }
    }

    fn of(self, split: Split) -> u32 {
        match split {
            Split::Train => self.train_px,
            Split::Valid | Split::Calibration => self.eval_px,
        }
    }
}

/// Decodes a dataset's images.
#[derive(Debug)]
pub(crate) struct Loader {
    options: LoaderOptions,
    pool: Arc<rayon::ThreadPool>,
}

impl Loader {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`TrainingError::Internal`] when a thread cannot be started.
    pub(crate) fn new(options: LoaderOptions) -> Result<Self, TrainingError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.n_threads)
            .thread_name(|thread_idx| format!("decode-{thread_idx}"))
            .build()
            .map_err(|error| TrainingError::Internal { detail: format!("the decoding threads: {error}") })?;
        Ok(Self { options, pool: Arc::new(pool) })
    }

    /// The threads, also used by [`Dataset::load`].
    #[must_use]
    pub(crate) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Decodes all parts for a stage. The first call decodes every image once; undecodable ones are removed from the
    /// dataset and counted in its report. Drop an earlier stage's images first: they use the same budget.
    ///
    /// # Errors
    /// [`TrainingError::BadData`] when too many images are unreadable, [`TrainingError::Cancelled`].
    pub(crate) fn prepare(
        &self,
        dataset: &mut Dataset,
        sides: Sides,
        watch: &LoadWatch<'_>,
    ) -> Result<StageImages, TrainingError> {
        let budget = AtomicU64::new(self.options.memory_budget_bytes);
        let counter = AtomicUsize::new(0);
        let examples = dataset.examples();
        let n_total = examples.len();
        let all_were_decoded = dataset.all_were_decoded;
        let slots: Vec<Result<Slot, String>> = self.pool.install(|| {
            examples
                .par_iter()
                .map(|example| {
                    let n_done = counter.fetch_add(1, Ordering::Relaxed) + 1;
                    if watch(LoadProgress { phase: LoadPhase::Decoding, n_done, n_total }).is_break() {
                        return Err(TrainingError::Cancelled);
                    }
                    let side_px = sides.of(example.split);
                    let fits = take(&budget, 3 * u64::from(side_px) * u64::from(side_px));
                    if !fits && all_were_decoded {
                        return Ok(Ok(Slot::OnDisk));
                    }
                    Ok(image_file::decode(&example.path, side_px, self.options.max_pixels)
                        .map(|pixels| if fits { Slot::InMemory(Arc::new(pixels)) } else { Slot::OnDisk }))
                })
                .collect::<Result<_, _>>()
        })?;
        let mut pictures = [Vec::new(), Vec::new(), Vec::new()];
        let mut bad = Vec::new();
        for (example_idx, (example, slot)) in examples.iter().zip(slots).enumerate() {
            let [train, valid, calibration] = &mut pictures;
            let part = match example.split {
                Split::Train => train,
                Split::Valid => valid,
                Split::Calibration => calibration,
            };
            match slot {
                Ok(slot) => part.push(Picture { path: example.path.clone(), labels: example.labels.clone(), slot }),
                Err(detail) => bad.push((example_idx, detail)),
            }
        }
        dataset.drop_unreadable(bad)?;
        let n_heads = dataset.heads().len();
        let [train, valid, calibration] = pictures;
        let set = |pictures, side_px| {
            ImageSet(Arc::new(Images {
                pictures,
                side_px,
                n_heads,
                pool: Arc::clone(&self.pool),
                options: self.options,
            }))
        };
        Ok(StageImages {
            train: set(train, sides.train_px),
            valid: set(valid, sides.eval_px),
            calibration: set(calibration, sides.eval_px),
        })
    }
}

/// The parts, decoded for a stage.
#[derive(Clone, Debug)]
pub(crate) struct StageImages {
    /// At [`Sides::train_px`].
    pub train: ImageSet,
    /// At [`Sides::eval_px`].
    pub valid: ImageSet,
    /// At [`Sides::eval_px`].
    pub calibration: ImageSet,
}

/// A part's images and labels. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ImageSet(Arc<Images>);

#[derive(Debug)]
struct Images {
    pictures: Vec<Picture>,
    side_px: u32,
    n_heads: usize,
    pool: Arc<rayon::ThreadPool>,
    options: LoaderOptions,
}

#[derive(Debug)]
struct Picture {
    path: PathBuf,
    labels: Vec<f32>,
    slot: Slot,
}

#[derive(Debug)]
enum Slot {
    InMemory(Arc<Pixels>),
    OnDisk,
}

/// Images that go through the network together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LabelledBatch {
    /// All with the set's side.
    pub pixels: Vec<Arc<Pixels>>,
    /// For each head one number per image, as in [`super::dataset::Example::labels`]; NaN: no label.
    pub labels: Vec<Vec<f32>>,
}

/// How a pass iterates over a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchPlan {
    /// At least 1.
    pub batch_size: usize,
    /// The order.
    pub order: Order,
    /// The treatment of images that do not fill a batch.
    pub rest: Rest,
}

/// The order of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The dataset's order.
    Listed,
    /// Random, from the seed; use a different one for each epoch.
    Shuffled {
        /// The same seed gives the same order.
        seed: u64,
    },
}

/// The treatment of images that do not fill a last batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// They form a smaller batch.
    Kept,
    /// They are left out of this pass, unless there is no other batch.
    Dropped,
}

impl ImageSet {
    /// The number of images.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.pictures.len()
    }

    /// Returns true if there is none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.pictures.is_empty()
    }

    /// The side of every image in pixels.
    #[must_use]
    pub(crate) fn side_px(&self) -> u32 {
        self.0.side_px
    }

    /// The number of batches in a pass.
    #[must_use]
    pub(crate) fn n_batches(&self, plan: BatchPlan) -> usize {
        let batch_size = plan.batch_size.max(1);
        match plan.rest {
            Rest::Kept => self.len().div_ceil(batch_size),
            Rest::Dropped => (self.len() / batch_size).max(usize::from(!self.is_empty())),
        }
    }

    /// Starts a pass over the set. An item is an error when a file has become unreadable; it is then the last item.
    #[must_use]
    pub(crate) fn batches(&self, plan: BatchPlan) -> Batches {
        let mut order: Vec<_> = (0..self.len()).collect();
        if let Order::Shuffled { seed } = plan.order {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        let mut order: Vec<Vec<usize>> = order.chunks(plan.batch_size.max(1)).map(<[usize]>::to_vec).collect();
        order.truncate(self.n_batches(plan));
        let in_memory = self.0.pictures.iter().all(|picture| matches!(picture.slot, Slot::InMemory(_)));
        let images = Arc::clone(&self.0);
        if in_memory {
            return Batches(Pass::InMemory { images, order: order.into_iter() });
        }
        let (sender, receiver) = mpsc::sync_channel(self.0.options.n_prefetch.max(1));
        let read_ahead = move || {
            for picked in order {
                let batch = images.batch(&picked);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("prefetch".to_owned()).spawn(read_ahead) {
            Ok(thread) => Batches(Pass::Ahead { receiver: Some(receiver), thread: Some(thread) }),
            Err(error) => Batches(Pass::NoThread(Some(error))),
        }
    }
}

impl Images {
    fn batch(&self, picked: &[usize]) -> Result<LabelledBatch, TrainingError> {
        let picked: Vec<_> = picked.iter().filter_map(|picture_idx| self.pictures.get(*picture_idx)).collect();
        let pixels = if picked.iter().all(|picture| matches!(picture.slot, Slot::InMemory(_))) {
            picked.iter().map(|picture| self.pixels(picture)).collect::<Result<_, _>>()?
        } else {
            self.pool.install(|| picked.par_iter().map(|picture| self.pixels(picture)).collect::<Result<_, _>>())?
        };
        let label = |picture: &Picture, head_idx: usize| picture.labels.get(head_idx).copied().unwrap_or(f32::NAN);
        let column = |head_idx| picked.iter().map(|picture| label(picture, head_idx)).collect();
        Ok(LabelledBatch { pixels, labels: (0..self.n_heads).map(column).collect() })
    }

    fn pixels(&self, picture: &Picture) -> Result<Arc<Pixels>, TrainingError> {
        match &picture.slot {
            Slot::InMemory(pixels) => Ok(Arc::clone(pixels)),
            Slot::OnDisk => image_file::decode(&picture.path, self.side_px, self.options.max_pixels)
                .map(Arc::new)
                .map_err(|detail| changed(&picture.path, detail)),
        }
    }
}

fn changed(path: &Path, detail: String) -> TrainingError {
    TrainingError::BadData {
        detail: format!("{} was readable when the run began, but no longer: {detail}", path.display()),
        report: None,
    }
}

/// The batches of a pass. Dropping it stops the reading ahead.
#[derive(Debug)]
pub(crate) struct Batches(Pass);

#[derive(Debug)]
enum Pass {
    InMemory {
        images: Arc<Images>,
        order: std::vec::IntoIter<Vec<usize>>,
    },
    Ahead {
        /// Dropped first, so that a waiting thread is woken.
        receiver: Option<mpsc::Receiver<Result<LabelledBatch, TrainingError>>>,
        thread: Option<JoinHandle<()>>,
    },
    NoThread(Option<std::io::Error>),
}

impl Iterator for Batches {
    type Item = Result<LabelledBatch, TrainingError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Pass::InMemory { images, order } => Some(images.batch(&order.next()?)),
            Pass::Ahead { receiver, thread } => {
                if let Ok(batch) = receiver.as_ref()?.recv() {
                    return Some(batch);
                }
                *receiver = None;
                // The channel ended with the last batch or by a panic.
                let ended = thread.take()?.join();
                ended.is_err().then(|| Err(TrainingError::Internal { detail: "reading ahead panicked".to_owned() }))
            }
            Pass::NoThread(error) => {
                let error = error.take()?;
                Some(Err(TrainingError::Internal { detail: format!("the thread that reads ahead: {error}") }))
            }
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        if let Pass::Ahead { receiver, thread } = &mut self.0 {
            drop(receiver.take());
            if let Some(thread) = thread.take() {
                // A panic there affected this pass alone.
                let _ = thread.join();
            }
        }
    }
}

/// Takes bytes from a budget, if it has enough.
fn take(budget: &AtomicU64, n_bytes: u64) -> bool {
    budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n_bytes)).is_ok()
}

/// The free memory that the system reports, or 4 GiB if it reports none; a container's own limit counts.
fn free_memory_bytes() -> u64 {
    let Ok(mut system) = System::new() else { return 4 << 30 };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let of_machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let of_container = sysinfo::get_current_pid().ok().and_then(|pid| {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
        Some(system.process(pid)?.cgroup_limits()?.free_memory)
    });
    of_machine.into_iter().chain(of_container).min().unwrap_or(4 << 30)
}

#[cfg(test)]
mod tests;
