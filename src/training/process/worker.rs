//! The training process, which receives a job and produces a version's weights and facts.
//!
//! [`main`] implements `visage worker`. It reads one [`Job`] from standard input, and from then on only a cancellation;
//! the end of that pipe means that the server is gone, and ends the process. It writes [`WorkerEvent`]s to standard
//! output, logs to standard error, and its weights into the job's scratch folder. [`work`] does the same inside an
//! existing process.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    frames::{claim_stdout, read_frame, write_frame},
    priority,
};
use crate::{
    error::panic_message,
    nn::{self, Device, InferenceNetwork, Network, NetworkSpec, NnError, Normalisation},
    proto::{
        store::{Golden, HeadCalibration, Preprocessing},
        v1,
        worker::{Finished, Job, WorkerCommand, WorkerEvent, worker_command, worker_event::Event},
    },
    training::{
        TrainingError, count,
        data::{DataRequest, Dataset, LoadPhase, LoadProgress, Loader, LoaderOptions, Sides, Split},
        learn::{self, Clock, Fit},
        request::{DataSource, Head, Recipe, Roots, Target, network_spec},
    },
};

/// The shortest time between two progress events.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Runs the process. Call it before the process has a second thread.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let refused = priority::lower_priority();
    let output = match claim_stdout() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("standard output: {error}");
            return ExitCode::FAILURE;
        }
    };
    for what in refused {
        tracing::warn!("the training process could not fully lower its priority: {what}");
    }
    let job = match read_frame::<WorkerCommand>(&mut std::io::stdin()) {
        Ok(Some(WorkerCommand { command: Some(worker_command::Command::Job(job)) })) => job,
        Ok(_) => {
            eprintln!("the worker is started by the server, which sends a job to its standard input");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    static CANCELLED: AtomicBool = AtomicBool::new(false);
    let listening =
        std::thread::Builder::new().name("commands".to_owned()).spawn(|| listen(std::io::stdin(), &CANCELLED));
    if let Err(error) = listening {
        eprintln!("the thread that listens to the server: {error}");
        return ExitCode::FAILURE;
    }
    match work(job, output, &CANCELLED) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Waits for a cancellation; ends the process when the server is gone.
fn listen(mut commands: impl Read, cancelled: &AtomicBool) {
    loop {
        match read_frame::<WorkerCommand>(&mut commands) {
            Ok(Some(WorkerCommand { command: Some(worker_command::Command::Cancel(_)) })) => {
                cancelled.store(true, Ordering::Relaxed);
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                eprintln!("the server is gone");
                std::process::exit(1);
            }
        }
    }
}

/// Runs a job and reports its events; the last one is its end.
///
/// # Errors
/// The error that the last event reported, once it is written.
pub(crate) fn work(job: Job, output: impl Write + Send, cancelled: &AtomicBool) -> Result<(), TrainingError> {
    let outbox = Outbox::new(output, cancelled);
    let result = catch_unwind(AssertUnwindSafe(|| Work { job: &job, outbox: &outbox, cancelled }.run()));
    let result = result.unwrap_or_else(|panic| Err(panicked(panic_message(&*panic).unwrap_or("without a message"))));
    match result {
        Ok(finished) => {
            outbox.send(Event::Finished(finished));
            Ok(())
        }
        Err(error) => {
            if let TrainingError::BadData { report: Some(report), .. } = &error {
                outbox.send(Event::Data((**report).clone()));
            }
            outbox.send(Event::Failed(error.to_failed()));
            Err(error)
        }
    }
}

/// Converts a panic. tch panics where an operation has no fallible form; the message shows whether memory ran out.
fn panicked(message: &str) -> TrainingError {
    let first = message.lines().next().unwrap_or_default().to_owned();
    if nn::is_out_of_memory(message) {
        return TrainingError::Network(NnError::OutOfMemory { detail: first });
    }
    TrainingError::Internal { detail: format!("the training process panicked: {first}") }
}

/// Writes events, one at a time.
struct Outbox<'a> {
    output: Mutex<(Box<dyn Write + Send + 'a>, Option<Instant>)>,
    cancelled: &'a AtomicBool,
}

impl<'a> Outbox<'a> {
    fn new(output: impl Write + Send + 'a, cancelled: &'a AtomicBool) -> Self {
        Self { output: Mutex::new((Box::new(output), None)), cancelled }
    }

    fn send(&self, event: Event) {
        let mut output = self.output.lock();
        if write_frame(&mut output.0, &WorkerEvent { event: Some(event) }).is_err() {
            // The reader is gone.
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Sends progress, unless the last was a moment ago; an epoch's last progress is always sent.
    fn progress(&self, progress: impl FnOnce() -> v1::Progress, is_last: bool) {
        {
            let mut output = self.output.lock();
            if !is_last && output.1.is_some_and(|sent| sent.elapsed() < PROGRESS_EVERY) {
                return;
            }
            output.1 = Some(Instant::now());
        }
        self.send(Event::Progress(progress()));
    }
}

/// One job.
struct Work<'a, 'o> {
    job: &'a Job,
    outbox: &'a Outbox<'o>,
    cancelled: &'a AtomicBool,
}

impl Work<'_, '_> {
    fn run(&self) -> Result<Finished, TrainingError> {
        let job = self.job;
        let recipe = Recipe::from_proto(&job.recipe.clone().unwrap_or_default())?;
        let roots = Roots::new(&job.roots)?;
        let sources = DataSource::all_from_proto(&job.sources, &roots)?;
        let device = Device::resolve(&job.device)?;
        nn::set_num_threads(job.n_threads as usize);
        tch::manual_seed(recipe.seed.cast_signed());

        let options =
            LoaderOptions { n_threads: job.n_threads as usize, ..LoaderOptions::with_max_pixels(job.max_pixels) };
        let loader = Loader::new(options)?;
        let loading = Loading::new(recipe.stages.len());
        let watch = |at: LoadProgress| {
            self.outbox.progress(|| loading.progress(at), at.n_done == at.n_total);
            if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let request = DataRequest { sources: &sources, recipe: &recipe, roots: &roots };
        let mut dataset = Dataset::load(&request, loader.pool(), &watch)?;
        let sides = |stage_idx: usize| {
            let side_px = recipe.stages.get(stage_idx).map_or(0, |stage| stage.image_size_px);
            Sides::new(side_px, recipe.crop_fraction)
        };
        let mut images = loader.prepare(&mut dataset, sides(0), &watch)?;
        self.outbox.send(Event::Data(dataset.report()));

        let heads = dataset.heads().to_vec();
        let spec = network_spec(recipe.architecture, &heads, recipe.dropout);
        let normalisation = Normalisation::new(nn::IMAGENET_MEAN, nn::IMAGENET_STD, device);
        let mut network = Network::new(&spec, device);
        self.start_weights(&mut network, &dataset)?;

        let check_cancelled = || if self.is_cancelled() { Err(TrainingError::Cancelled) } else { Ok(()) };
        let report = |progress: v1::Progress| {
            let is_last = progress.step == progress.n_steps;
            self.outbox.progress(|| progress, is_last);
        };
        let mut fit = Fit {
            recipe: &recipe,
            heads: &heads,
            loader: &loader,
            normalisation: &normalisation,
            check_cancelled: &check_cancelled,
            report: &report,
            clock: Clock::start(&recipe, images.train.len(), images.valid.len()),
        };
        let mut answers = Vec::new();
        for (stage_idx, stage) in recipe.stages.iter().enumerate() {
            if images.valid.side_px() != stage.image_size_px {
                // Free the earlier stage's memory first.
                drop(images);
                images = loader.prepare(&mut dataset, sides(stage_idx), &watch)?;
            }
            answers = fit.stage(&mut network, stage_idx, stage, &images)?;
        }
        let calibrations = calibrate(&recipe, &heads, &fit.predict(&network, &images.calibration)?);
        let mut metrics = learn::metrics(&heads, &answers);
        metrics.extend(coverage(&heads, &answers, &calibrations));
        let side_px = images.valid.side_px();
        self.finish(&spec, &network, heads, side_px, calibrations, metrics)
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Loads the warm start, or sets a regression's last bias to the mean of its labels.
    fn start_weights(&self, network: &mut Network, dataset: &Dataset) -> Result<(), TrainingError> {
        let mut taken = Vec::new();
        for file in [&self.job.torchvision_file, &self.job.warm_start_file].into_iter().filter(|file| !file.is_empty())
        {
            let path = PathBuf::from(file);
            let new = network.take_matching(&nn::read_weights(&path)?)?;
            if new.is_empty() {
                let detail = format!("no tensor of {} has the name and shape of one of the network", path.display());
                return Err(NnError::WeightsMismatch { detail }.into());
            }
            tracing::info!(n_tensors = new.len(), "warm start");
            taken.extend(new);
        }
        for (head_idx, head) in dataset.heads().iter().enumerate() {
            let is_warm = taken.iter().any(|name| *name == format!("heads.{}.bias", head.name));
            if is_warm || !matches!(head.target, Target::Regression { .. }) {
                continue;
            }
            let (mut sum, mut n) = (0.0, 0.0);
            for label in dataset.labels(Split::Train, head_idx) {
                sum += f64::from(label);
                n += 1.0;
            }
            network.set_head_bias(head_idx, sum / n)?;
        }
        Ok(())
    }

    /// Writes the weights, and computes the golden outputs for later loads.
    fn finish(
        &self,
        spec: &NetworkSpec,
        network: &Network,
        heads: Vec<Head>,
        side_px: u32,
        calibrations: Vec<HeadCalibration>,
        metrics: BTreeMap<String, f64>,
    ) -> Result<Finished, TrainingError> {
        let tensors = network.export()?;
        let file = Path::new(&self.job.scratch_dir).join("weights.safetensors");
        let weights_digest = nn::write_safetensors(&file, &tensors)?.as_bytes().to_vec();
        let mut inference = InferenceNetwork::load(spec, &tensors, nn::IMAGENET_MEAN, nn::IMAGENET_STD, Device::Cpu)?;
        let answers = inference.infer(&[&nn::golden_input(nn::GOLDEN_SEED, side_px)], side_px)?;
        let golden = nn::Golden::new(answers.into_iter().flat_map(|answer| answer.heads.concat()).collect());
        Ok(Finished {
            weights_file: file.to_string_lossy().into_owned(),
            weights_digest,
            heads: heads.iter().map(Head::to_proto).collect(),
            preprocessing: Some(Preprocessing {
                image_size_px: side_px,
                mean: nn::IMAGENET_MEAN.to_vec(),
                std: nn::IMAGENET_STD.to_vec(),
                min_side_px: nn::MIN_SIDE_PX,
                ..Preprocessing::default()
            }),
            calibrations,
            metrics,
            golden: Some(Golden {
                input_seed: golden.input_seed,
                outputs: golden.outputs,
                tolerance: golden.tolerance,
            }),
        })
    }
}

/// Calibrates the regressions that have enough examples.
fn calibrate(recipe: &Recipe, heads: &[Head], answers: &[learn::LabelledOutputs]) -> Vec<HeadCalibration> {
    let mut calibrations = Vec::new();
    for (head, answers) in heads.iter().zip(answers) {
        if !matches!(head.target, Target::Regression { .. }) {
            continue;
        }
        let n = answers.labels.len();
        match learn::half_width(answers.residuals(), recipe.coverage) {
            Some(half_width) => calibrations.push(HeadCalibration {
                head: head.name.clone(),
                coverage: recipe.coverage,
                half_width,
                n_examples: n as u64,
                ..HeadCalibration::default()
            }),
            None => tracing::warn!(head = head.name, n, "too few calibration examples for an interval"),
        }
    }
    calibrations
}

/// Measures how often the valid part's labels lie in their interval, `{head}.coverage`, and `{head}.half_width`.
fn coverage(
    heads: &[Head],
    answers: &[learn::LabelledOutputs],
    calibrations: &[HeadCalibration],
) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    for (head, answers) in heads.iter().zip(answers) {
        let Some(calibration) = calibrations.iter().find(|calibration| calibration.head == head.name) else { continue };
        metrics.insert(format!("{}.half_width", head.name), calibration.half_width);
        let residuals = answers.residuals();
        let n_inside = residuals.iter().filter(|residual| **residual <= calibration.half_width).count();
        if !residuals.is_empty() {
            metrics.insert(format!("{}.coverage", head.name), n_inside as f64 / residuals.len() as f64);
        }
    }
    metrics
}

/// Reports the progress of reading the data: stage 0 of the run.
struct Loading {
    n_stages: usize,
    /// The current phase, and when it began.
    began: Mutex<Option<(LoadPhase, Instant)>>,
}

impl Loading {
    fn new(n_stages: usize) -> Self {
        Self { n_stages, began: Mutex::new(None) }
    }

    fn progress(&self, at: LoadProgress) -> v1::Progress {
        let mut began = self.began.lock();
        let began = match *began {
            Some((phase, began)) if phase == at.phase => began,
            _ => began.insert((at.phase, Instant::now())).1,
        };
        let seconds = began.elapsed().as_secs_f64();
        let per_second = if seconds > 0.0 { at.n_done as f64 / seconds } else { 0.0 };
        let n_left = at.n_total.saturating_sub(at.n_done) as f64;
        let eta = (per_second > 0.0 && at.n_total > 0).then(|| Duration::try_from_secs_f64(n_left / per_second).ok());
        v1::Progress {
            n_stages: count(self.n_stages),
            step: count(at.n_done),
            n_steps: count(at.n_total),
            images_per_second: per_second,
            eta: eta.flatten().and_then(|eta| prost_types::Duration::try_from(eta).ok()),
            ..v1::Progress::default()
        }
    }
}

#[cfg(test)]
mod tests;
