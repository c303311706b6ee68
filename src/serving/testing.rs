//! A fake engine, for the tests of this layer and of those above it.
//!
//! It answers at once, or as slowly as told, with numbers that depend on the pixels alone; fails or panics on images
//! that begin with a marker; and can hold the device busy until the test says so. Never used by a server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{Engine, EngineError, EngineLoader, EngineSource, ImageOutput, Input, golden_pixels};
use crate::{
    proto::{
        store::{EmbeddingLayer, Golden, HeadCalibration, Preprocessing, VersionRecord},
        v1::{Architecture, ClassificationHead, Head, RegressionHead, head},
    },
    vision::Pixels,
};

/// Makes engines that need no network. Clones share what they are told and what they have seen.
#[derive(Clone, Default)]
pub struct FakeEngineLoader {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    gate: Gate,
    calls: Mutex<Vec<Vec<u8>>>,
    n_alive: AtomicUsize,
}

#[derive(Clone, Copy, Default)]
struct Told {
    delay: Duration,
    delay_per_image: Duration,
    fail_on: Option<u8>,
    panic_on: Option<u8>,
    panic_always: bool,
    max_batch: Option<usize>,
    refuse_to_load: bool,
}

impl FakeEngineLoader {
    /// An engine that answers at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Each run takes this long, and so much longer for each image.
    #[must_use]
    pub fn with_delay(self, delay: Duration, per_image: Duration) -> Self {
        self.tell(|told| (told.delay, told.delay_per_image) = (delay, per_image))
    }

    /// A run with an image whose first byte is this fails.
    #[must_use]
    pub fn failing_on(self, marker: u8) -> Self {
        self.tell(|told| told.fail_on = Some(marker))
    }

    /// A run with an image whose first byte is this panics.
    #[must_use]
    pub fn panicking_on(self, marker: u8) -> Self {
        self.tell(|told| told.panic_on = Some(marker))
    }

    /// A run with more images than this has no memory; 0: even one has none.
    #[must_use]
    pub fn with_memory_for(self, n_images: usize) -> Self {
        self.tell(|told| told.max_batch = Some(n_images))
    }

    /// Loads fail from now on, or no more.
    pub fn refuse_to_load(&self, refuse: bool) {
        let _ = self.clone().tell(|told| told.refuse_to_load = refuse);
    }

    /// Every run panics from now on, or no more.
    pub fn panic_always(&self, panics: bool) {
        let _ = self.clone().tell(|told| told.panic_always = panics);
    }

    /// Runs stop at their beginning until [`FakeEngineLoader::open`], so that others must wait.
    pub fn close(&self) {
        self.shared.gate.lock().closed = true;
    }

    /// Lets runs go on.
    pub fn open(&self) {
        self.shared.gate.lock().closed = false;
        self.shared.gate.changed.notify_all();
    }

    /// Blocks until a run stands at the closed gate.
    pub fn wait_until_held(&self) {
        let gate = &self.shared.gate;
        let mut state = gate.lock();
        while state.n_held == 0 {
            state = gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first bytes of the images of each run so far, warming included, failed runs too.
    #[must_use]
    pub fn calls(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.calls).clone()
    }

    /// Forgets the runs so far.
    pub fn forget_calls(&self) {
        lock(&self.shared.calls).clear();
    }

    /// Engines that are built and not dropped.
    #[must_use]
    pub fn n_alive(&self) -> usize {
        self.shared.n_alive.load(Ordering::SeqCst)
    }

    fn tell(self, change: impl FnOnce(&mut Told)) -> Self {
        change(&mut lock(&self.shared.told));
        self
    }
}

impl EngineLoader for FakeEngineLoader {
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError> {
        if lock(&self.shared.told).refuse_to_load {
            return Err(EngineError::Failed("told to refuse".to_owned()));
        }
        self.shared.n_alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeEngine { shared: self.shared.clone(), record: source.record.clone() }))
    }
}

struct FakeEngine {
    shared: Arc<Shared>,
    record: VersionRecord,
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.shared.n_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for FakeEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let firsts: Vec<u8> = batch.iter().map(|image| first(image)).collect();
        lock(&self.shared.calls).push(firsts.clone());
        self.shared.gate.pass();
        let told = *lock(&self.shared.told);
        thread::sleep(told.delay + told.delay_per_image * u32::try_from(batch.len()).unwrap_or(u32::MAX));
        if told.max_batch.is_some_and(|max| batch.len() > max) {
            return Err(EngineError::OutOfMemory(format!("told to have none for {}", batch.len())));
        }
        let bad = |marker: Option<u8>| marker.is_some_and(|marker| firsts.contains(&marker));
        assert!(!told.panic_always && !bad(told.panic_on), "told to panic");
        if bad(told.fail_on) {
            return Err(EngineError::Failed("told to fail".to_owned()));
        }
        Ok(batch.iter().map(|image| output(&self.record, image)).collect())
    }
}

/// Where runs stop while a test has closed it.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    n_held: usize,
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        lock(&self.state)
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.n_held += 1;
        self.changed.notify_all();
        while state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.n_held -= 1;
    }
}

/// What the fake answers for an image of a version: a regression gives the mean of the bytes, the labels of a
/// classification share by the first bytes, and an embedding is made of bytes spread over the picture.
#[must_use]
pub fn output(record: &VersionRecord, image: &Input) -> ImageOutput {
    let bytes = bytes(image);
    let mean = bytes.iter().map(|&b| f32::from(b)).sum::<f32>() / bytes.len().max(1) as f32;
    let sample = |at: usize| bytes.get(at.wrapping_mul(2_654_435_761) % bytes.len().max(1)).copied().unwrap_or(0);
    let answer = |head: &Head| match &head.kind {
        Some(head::Kind::Classification(kind)) => {
            let shares: Vec<f32> = (0..kind.labels.len()).map(|at| 1.0 + f32::from(sample(at))).collect();
            let sum: f32 = shares.iter().sum();
            shares.into_iter().map(|share| share / sum).collect()
        }
        _ => vec![mean],
    };
    let embedding = |layer: &EmbeddingLayer| {
        let vector = (0..layer.dimensions as usize).map(|at| f32::from(sample(at + 1)) - mean + 1e-3).collect();
        (layer.layer.clone(), vector)
    };
    let embeddings = record.embedding_layers.iter().map(embedding).collect::<BTreeMap<_, _>>();
    ImageOutput::new(record.heads.iter().map(answer).collect(), embeddings)
}

/// A version with the heads `age` (calibrated) and `gender`, two embedding layers, and the fake's golden outputs.
#[must_use]
pub fn version_record(model: &str, number: u64, side_px: u32) -> VersionRecord {
    let head = |name: &str, kind| Head { name: name.to_owned(), kind: Some(kind), ..Default::default() };
    let labels = vec!["female".to_owned(), "male".to_owned()];
    let layer = |layer: &str, dimensions| EmbeddingLayer { layer: layer.to_owned(), dimensions };
    let preprocessing = Preprocessing {
        image_size_px: side_px,
        mean: vec![0.485, 0.456, 0.406],
        std: vec![0.229, 0.224, 0.225],
        min_side_px: 1,
        ..Default::default()
    };
    let mut record = VersionRecord {
        model: model.to_owned(),
        number,
        architecture: Architecture::Resnet18.into(),
        heads: vec![
            head("age", head::Kind::Regression(RegressionHead { unit: "years".to_owned() })),
            head("gender", head::Kind::Classification(ClassificationHead { labels })),
        ],
        preprocessing: Some(preprocessing),
        calibrations: vec![HeadCalibration {
            head: "age".to_owned(),
            coverage: 0.9,
            half_width: 5.0,
            n_examples: 100,
            ..Default::default()
        }],
        embedding_layers: vec![layer("embedding512", 512), layer("embedding16", 16)],
        ..Default::default()
    };
    let outputs = output(&record, &Input::Square(golden_pixels(1, side_px))).heads.concat();
    record.golden = Some(Golden { input_seed: 1, outputs, tolerance: 1e-4 });
    record
}

/// A source for that version; it needs no tensors.
#[must_use]
pub fn engine_source(record: VersionRecord) -> EngineSource {
    let version = format!("models/{}/versions/{}", record.model, record.number);
    EngineSource { version, record, tensors: Vec::new() }
}

/// An image of one colour, so that its first byte is its marker.
#[must_use]
pub fn marked(marker: u8, side_px: u32) -> Arc<Input> {
    Arc::new(Input::Square(Pixels { side_px, rgb: vec![marker; side_px as usize * side_px as usize * 3].into() }))
}

fn first(image: &Input) -> u8 {
    bytes(image).first().copied().unwrap_or(0)
}

fn bytes(image: &Input) -> &[u8] {
    match image {
        Input::Square(pixels) => &pixels.rgb,
        Input::Photo(pyramid) => pyramid.photo().rgb(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
