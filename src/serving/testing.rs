//! A fake engine, for the tests of this layer and of those above it.
//!
//! Its answers depend on the pixels alone and come at once or after a set delay. It fails or panics on images that
//! begin with a marker, and can hold the device busy until the test releases it. Never used by a server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Engine, EngineError, EngineLoader, EngineSource, ImageOutput, Input, InputKind, golden};
use crate::{
    names::{ModelId, VersionName},
    nn::{Architecture, Golden, HeadKind, IMAGENET_MEAN, IMAGENET_STD, NetworkKind, NetworkSpec},
    vision::Pixels,
};

/// Creates engines that need no network. Clones share their settings and records.
#[derive(Clone, Default)]
pub(crate) struct FakeEngineLoader {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    gate: Gate,
    calls: Mutex<Vec<Vec<u8>>>,
    n_alive: AtomicUsize,
    n_loads: AtomicUsize,
}

#[derive(Clone, Copy, Default)]
struct Behaviour {
    delay: Duration,
    delay_per_image: Duration,
    fail_on: Option<u8>,
    panic_on: Option<u8>,
    panic_always: bool,
    max_batch: Option<usize>,
    refuse_to_load: bool,
}

impl FakeEngineLoader {
    /// Creates engines that answer at once.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Each run takes `delay`, and `per_image` more for each image.
    #[must_use]
    pub(crate) fn with_delay(self, delay: Duration, per_image: Duration) -> Self {
        self.set(|behaviour| (behaviour.delay, behaviour.delay_per_image) = (delay, per_image))
    }

    /// A run with an image whose first byte is this fails.
    #[must_use]
    pub(crate) fn failing_on(self, marker: u8) -> Self {
        self.set(|behaviour| behaviour.fail_on = Some(marker))
    }

    /// A run with an image whose first byte is this panics.
    #[must_use]
    pub(crate) fn panicking_on(self, marker: u8) -> Self {
        self.set(|behaviour| behaviour.panic_on = Some(marker))
    }

    /// A run with more images than this has no memory; 0: even one has none.
    #[must_use]
    pub(crate) fn with_memory_for(self, n_images: usize) -> Self {
        self.set(|behaviour| behaviour.max_batch = Some(n_images))
    }

    /// Makes loads fail from now on, or stops that.
    pub(crate) fn refuse_to_load(&self, refuse: bool) {
        let _ = self.clone().set(|behaviour| behaviour.refuse_to_load = refuse);
    }

    /// Makes every run panic from now on, or stops that.
    pub(crate) fn panic_always(&self, panics: bool) {
        let _ = self.clone().set(|behaviour| behaviour.panic_always = panics);
    }

    /// Blocks runs at their start until [`FakeEngineLoader::open`], so that others must wait.
    pub(crate) fn close(&self) {
        self.shared.gate.lock().closed = true;
    }

    /// Lets runs continue.
    pub(crate) fn open(&self) {
        self.shared.gate.lock().closed = false;
        self.shared.gate.changed.notify_all();
    }

    /// Blocks until a run waits at the closed gate.
    pub(crate) fn wait_until_held(&self) {
        let gate = &self.shared.gate;
        let mut state = gate.lock();
        while state.n_held == 0 {
            gate.changed.wait(&mut state);
        }
    }

    /// The first bytes of the images of each run so far, including warming and failed runs.
    #[must_use]
    pub(crate) fn calls(&self) -> Vec<Vec<u8>> {
        self.shared.calls.lock().clone()
    }

    /// Forgets the runs so far.
    pub(crate) fn forget_calls(&self) {
        self.shared.calls.lock().clear();
    }

    /// The number of engines built and not dropped.
    #[must_use]
    pub(crate) fn n_alive(&self) -> usize {
        self.shared.n_alive.load(Ordering::SeqCst)
    }

    /// The number of attempts to build an engine.
    #[must_use]
    pub(crate) fn n_loads(&self) -> usize {
        self.shared.n_loads.load(Ordering::SeqCst)
    }

    fn set(self, change: impl FnOnce(&mut Behaviour)) -> Self {
        change(&mut self.shared.behaviour.lock());
        self
    }
}

impl EngineLoader for FakeEngineLoader {
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError> {
        self.shared.n_loads.fetch_add(1, Ordering::SeqCst);
        if self.shared.behaviour.lock().refuse_to_load {
            return Err(EngineError::Failed("set to refuse".to_owned()));
        }
        self.shared.n_alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeEngine { shared: self.shared.clone(), source: source.clone() }))
    }
}

struct FakeEngine {
    shared: Arc<Shared>,
    source: EngineSource,
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.shared.n_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for FakeEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let firsts: Vec<u8> = batch.iter().map(|image| first(image)).collect();
        self.shared.calls.lock().push(firsts.clone());
        self.shared.gate.pass();
        let behaviour = *self.shared.behaviour.lock();
        thread::sleep(behaviour.delay + behaviour.delay_per_image * u32::try_from(batch.len()).unwrap_or(u32::MAX));
        if behaviour.max_batch.is_some_and(|max| batch.len() > max) {
            return Err(EngineError::OutOfMemory(format!("set to have none for {}", batch.len())));
        }
        let bad = |marker: Option<u8>| marker.is_some_and(|marker| firsts.contains(&marker));
        assert!(!behaviour.panic_always && !bad(behaviour.panic_on), "set to panic");
        if bad(behaviour.fail_on) {
            return Err(EngineError::Failed("set to fail".to_owned()));
        }
        Ok(batch.iter().map(|image| output(&self.source, image)).collect())
    }
}

/// Runs stop here while a test keeps it closed.
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
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock()
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.n_held += 1;
        self.changed.notify_all();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.n_held -= 1;
    }
}

/// Computes the fake's answer for an image: a regression is the mean of the bytes, a classification's labels share by
/// the first bytes, and an embedding is made of bytes spread over the image.
#[must_use]
pub(crate) fn output(source: &EngineSource, image: &Input) -> ImageOutput {
    let bytes = bytes(image);
    let mean = bytes.iter().map(|&b| f32::from(b)).sum::<f32>() / bytes.len().max(1) as f32;
    let sample = |at: usize| bytes.get(at.wrapping_mul(2_654_435_761) % bytes.len().max(1)).copied().unwrap_or(0);
    let answer = |(_, kind): &(String, HeadKind)| match *kind {
        HeadKind::Classification { n_labels } => {
            let shares: Vec<f32> = (0..n_labels).map(|at| 1.0 + f32::from(sample(at))).collect();
            let sum: f32 = shares.iter().sum();
            shares.into_iter().map(|share| share / sum).collect()
        }
        HeadKind::Regression => vec![mean],
    };
    let heads = match &source.network {
        NetworkKind::Residual { spec, .. } => spec.heads.iter().map(answer).collect(),
        NetworkKind::Published(_) => Vec::new(),
    };
    let embedding = |layer: &String| {
        let n_dimensions = layer.trim_start_matches(char::is_alphabetic).parse().unwrap_or(1);
        let vector = (0..n_dimensions).map(|at: usize| f32::from(sample(at + 1)) - mean + 1e-3).collect();
        (layer.clone(), vector)
    };
    ImageOutput::new(heads, source.embedding_layers.iter().map(embedding).collect())
}

/// Names the first version of a model.
#[must_use]
pub(crate) fn version(model: &str) -> VersionName {
    VersionName { model: ModelId::parse("model", model).unwrap(), number: 1 }
}

/// Creates a version with the heads `age` and `gender`, two embedding layers, the fake's golden outputs and no tensors.
#[must_use]
pub(crate) fn engine_source(model: &str, number: u64, side_px: u32) -> EngineSource {
    let heads =
        vec![("age".to_owned(), HeadKind::Regression), ("gender".to_owned(), HeadKind::Classification { n_labels: 2 })];
    let spec = NetworkSpec { architecture: Architecture::ResNet18, heads, dropout: 0.0 };
    let mut source = EngineSource {
        version: VersionName { number, ..version(model) },
        network: NetworkKind::Residual { spec, mean: IMAGENET_MEAN, std: IMAGENET_STD },
        input: InputKind::Square { side_px },
        embedding_layers: vec!["embedding512".to_owned(), "embedding16".to_owned()],
        golden: None,
        tensors: Vec::new(),
    };
    let outputs = output(&source, &golden::input(&source.input, 1)).heads.concat();
    source.golden = Some(Golden { input_seed: 1, outputs, tolerance: 1e-4 });
    source
}

/// Creates an image of one colour, so that its first byte is its marker.
#[must_use]
pub(crate) fn marked(marker: u8, side_px: u32) -> Arc<Input> {
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
