//! The training loop: one network, in stages of one one-cycle each.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{COptimizer, Kind, Reduction, Tensor};

use super::{evaluate, schedule::OneCycle};
use crate::{
    nn::{HeadOutput, Network, NnError, Normalisation, ParameterGroup},
    proto::v1,
    training::{
        TrainingError, count,
        data::{Augmentation, BatchPlan, ImageSet, LabelledBatch, Loader, Order, Rest, StageImages},
        request::{Head, Recipe, Stage, Target},
    },
};

/// Adam's second beta and epsilon, as in fastai for this network.
const BETA2: f64 = 0.99;
const EPSILON: f64 = 1e-5;
/// The weight of the past in the displayed loss.
const LOSS_MEMORY: f64 = 0.98;
/// Cost of a training step with a frozen body, as a share of one without.
const FROZEN_COST: f64 = 0.35;
/// Cost of evaluating an image, as a share of a training step's.
const EVALUATION_COST: f64 = 0.33;

/// The optimiser's groups, in the order of their indices.
const GROUPS: [ParameterGroup; 4] =
    [ParameterGroup::BodyWeights, ParameterGroup::HeadWeights, ParameterGroup::BodyNorms, ParameterGroup::HeadNorms];

/// The state shared by all stages.
pub(crate) struct Fit<'a> {
    pub(crate) recipe: &'a Recipe,
    /// The heads with their labels.
    pub(crate) heads: &'a [Head],
    pub(crate) loader: &'a Loader,
    pub(crate) normalisation: &'a Normalisation,
    /// Checks for cancellation; an error ends the run.
    pub(crate) check_cancelled: &'a dyn Fn() -> Result<(), TrainingError>,
    /// Receives the progress of every step.
    pub(crate) report: &'a dyn Fn(v1::Progress),
    pub(crate) clock: Clock,
}

impl Fit<'_> {
    /// Runs one stage; returns the network's outputs on the valid part at its end.
    pub(crate) fn stage(
        &mut self,
        network: &mut Network,
        stage_idx: usize,
        stage: &Stage,
        images: &StageImages,
    ) -> Result<Vec<evaluate::LabelledOutputs>, TrainingError> {
        network.freeze_body(stage.freeze_body);
        let mut optimiser = optimiser(network, self.recipe.weight_decay)?;
        let plan = self.plan(stage_idx, 0);
        let n_steps = images.train.n_batches(plan);
        let cycle = OneCycle {
            max_learning_rate: stage.max_learning_rate,
            pct_start: self.recipe.pct_start,
            n_steps: n_steps * stage.epochs,
        };
        let mut loss = MovingLoss::default();
        let mut progress = v1::Progress::default();
        let mut answers = Vec::new();
        for epoch_idx in 0..stage.epochs {
            let mut pace = Pace::default();
            for (step_idx, batch) in images.train.batches(self.plan(stage_idx, epoch_idx)).enumerate() {
                (self.check_cancelled)()?;
                let batch = batch?;
                let settings = cycle.at(epoch_idx * n_steps + step_idx);
                optimiser.set_learning_rate(settings.learning_rate).map_err(NnError::from)?;
                optimiser.set_momentum(settings.momentum).map_err(NnError::from)?;
                let seed = mix(self.recipe.seed, stage_idx, epoch_idx, step_idx + 1);
                let value = self.step(network, &mut optimiser, stage, &batch, seed)?;
                if !value.is_finite() {
                    let (stage, epoch, step) = (stage_idx + 1, epoch_idx + 1, step_idx + 1);
                    return Err(TrainingError::Diverged { stage, epoch, step, loss: value });
                }
                self.clock.done += batch.pixels.len() as f64 * picture_cost(stage);
                pace.note(batch.pixels.len());
                progress = v1::Progress {
                    stage: count(stage_idx + 1),
                    n_stages: count(self.recipe.stages.len()),
                    epoch: count(epoch_idx + 1),
                    n_epochs: count(stage.epochs),
                    step: count(step_idx + 1),
                    n_steps: count(n_steps),
                    loss: loss.next(value),
                    images_per_second: pace.images_per_second(),
                    eta: self.clock.eta(),
                    learning_rate: settings.learning_rate,
                    metrics: progress.metrics,
                };
                (self.report)(progress.clone());
            }
            answers = self.predict(network, &images.valid)?;
            self.clock.done += images.valid.len() as f64 * picture_cost(stage) * EVALUATION_COST;
            // Repeats the epoch's last progress with its metrics.
            progress.metrics = evaluate::metrics(self.heads, &answers);
            progress.eta = self.clock.eta();
            (self.report)(progress.clone());
            let metrics = &progress.metrics;
            tracing::info!(stage = stage_idx + 1, epoch = epoch_idx + 1, loss = loss.shown(), ?metrics, "epoch");
        }
        Ok(answers)
    }

    /// Runs the network on a part.
    pub(crate) fn predict(
        &self,
        network: &Network,
        set: &ImageSet,
    ) -> Result<Vec<evaluate::LabelledOutputs>, TrainingError> {
        evaluate::predict(network, self.normalisation, self.heads, set, self.recipe.batch_size, self.check_cancelled)
    }

    fn plan(&self, stage_idx: usize, epoch_idx: usize) -> BatchPlan {
        let seed = mix(self.recipe.seed, stage_idx, epoch_idx, 0);
        BatchPlan { batch_size: self.recipe.batch_size, order: Order::Shuffled { seed }, rest: Rest::Dropped }
    }

    /// Runs one step and returns its loss.
    fn step(
        &self,
        network: &Network,
        optimiser: &mut COptimizer,
        stage: &Stage,
        batch: &LabelledBatch,
        seed: u64,
    ) -> Result<f64, TrainingError> {
        let augmentation = Augmentation {
            image_size_px: stage.image_size_px,
            crop_fraction: self.recipe.crop_fraction,
            flip_probability: self.recipe.flip_probability,
        };
        let pictures: Vec<Vec<u8>> = self.loader.pool().install(|| {
            let indexed = batch.pixels.par_iter().enumerate();
            indexed
                .map(|(picture_idx, pixels)| {
                    let mut rng = ChaCha8Rng::seed_from_u64(mix(seed, picture_idx, 0, 0));
                    augmentation.apply(pixels, &mut rng)
                })
                .collect()
        });
        let step = || -> Result<f64, NnError> {
            let images = self.normalisation.apply(&pictures.concat(), pictures.len(), stage.image_size_px)?;
            let output = network.forward_t(&images, true)?;
            let Some(loss) = loss(self.heads, &output, &batch.labels)? else { return Ok(0.0) };
            optimiser.zero_grad()?;
            loss.f_backward()?;
            optimiser.step()?;
            Ok(loss.f_double_value(&[])?)
        };
        Ok(step()?)
    }
}

/// Creates AdamW for the trainable parameters; batch norm and biases have no weight decay.
fn optimiser(network: &Network, weight_decay: f64) -> Result<COptimizer, NnError> {
    let mut optimiser = COptimizer::adamw(1e-3, 0.95, BETA2, 0.0, EPSILON, false)?;
    for (group_idx, group) in GROUPS.iter().enumerate() {
        let parameters = network.parameters().remove(group).unwrap_or_default();
        if parameters.is_empty() {
            continue;
        }
        let decays = matches!(group, ParameterGroup::BodyWeights | ParameterGroup::HeadWeights);
        for parameter in parameters {
            optimiser.add_parameters(&parameter, group_idx)?;
        }
        optimiser.set_weight_decay_group(group_idx, if decays { weight_decay } else { 0.0 })?;
    }
    Ok(optimiser)
}

/// Computes the weighted sum of the heads' losses over the labelled images; none if no image has a label.
fn loss(heads: &[Head], output: &HeadOutput, labels: &[Vec<f32>]) -> Result<Option<Tensor>, NnError> {
    let mut sum: Option<Tensor> = None;
    for ((head, raw), labels) in heads.iter().zip(&output.heads).zip(labels) {
        let (rows, truths): (Vec<i64>, Vec<f32>) =
            (0_i64..).zip(labels).filter(|(_, label)| !label.is_nan()).map(|(row, label)| (row, *label)).unzip();
        if rows.is_empty() {
            continue;
        }
        let given = if rows.len() == labels.len() {
            raw.shallow_clone()
        } else {
            raw.f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to_device(raw.device())?)?
        };
        let truths = Tensor::f_from_slice(&truths)?.f_to_device(raw.device())?;
        let loss = match &head.target {
            Target::Regression { .. } => given.f_squeeze_dim(1)?.f_smooth_l1_loss(&truths, Reduction::Mean, 1.0)?,
            Target::Classification { .. } => {
                let indices = truths.f_to_kind(Kind::Int64)?;
                given.f_cross_entropy_loss(&indices, None::<&Tensor>, Reduction::Mean, -100, 0.0)?
            }
        };
        let weighted = loss.f_mul_scalar(head.loss_weight)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&weighted)?,
            None => weighted,
        });
    }
    Ok(sum)
}

/// Derives a seed for one place of the run (SplitMix64's finaliser over its coordinates).
fn mix(seed: u64, a: usize, b: usize, c: usize) -> u64 {
    [a, b, c].iter().fold(seed, |seed, at| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(*at as u64);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The displayed loss: a moving average that does not start at zero.
#[derive(Default)]
struct MovingLoss {
    sum: f64,
    n: i32,
}

impl MovingLoss {
    fn next(&mut self, value: f64) -> f64 {
        self.sum = self.sum * LOSS_MEMORY + value * (1.0 - LOSS_MEMORY);
        self.n = self.n.saturating_add(1);
        self.shown()
    }

    fn shown(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.sum / (1.0 - LOSS_MEMORY.powi(self.n)) }
    }
}

/// Images per second over the last steps.
#[derive(Default)]
struct Pace {
    last: Vec<(Instant, usize)>,
}

impl Pace {
    fn note(&mut self, n_pictures: usize) {
        if self.last.len() > 20 {
            self.last.remove(0);
        }
        self.last.push((Instant::now(), n_pictures));
    }

    fn images_per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.last.first(), self.last.last()) else { return 0.0 };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        let n: usize = self.last.iter().skip(1).map(|(_, n)| n).sum();
        if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
    }
}

/// Progress of a run in images weighted by their cost, and the expected remaining time.
pub(crate) struct Clock {
    started: Instant,
    done: f64,
    total: f64,
}

impl Clock {
    /// Starts the clock for parts of these sizes.
    pub(crate) fn start(recipe: &Recipe, n_train: usize, n_valid: usize) -> Self {
        let epoch = n_train as f64 + n_valid as f64 * EVALUATION_COST;
        let total = recipe.stages.iter().map(|stage| epoch * stage.epochs as f64 * picture_cost(stage)).sum();
        Self { started: Instant::now(), done: 0.0, total }
    }

    fn eta(&self) -> Option<prost_types::Duration> {
        let seconds = self.started.elapsed().as_secs_f64() * (self.total - self.done).max(0.0) / self.done;
        let eta = Duration::try_from_secs_f64(seconds).ok()?;
        prost_types::Duration::try_from(eta).ok()
    }
}

fn picture_cost(stage: &Stage) -> f64 {
    let pixels = f64::from(stage.image_size_px).powi(2);
    if stage.freeze_body { pixels * FROZEN_COST } else { pixels }
}

#[cfg(test)]
mod tests;
