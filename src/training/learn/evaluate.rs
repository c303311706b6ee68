//! Runs a network on a part of the data and measures how good it is.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{
    nn::{HeadOutput, Network, NnError, Normalisation},
    training::{
        TrainingError,
        data::{BatchPlan, ImageSet, Order, Rest},
        request::{Head, Target},
    },
};

/// Outputs and labels of one head, for the images that have a label.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LabelledOutputs {
    /// The number, or the probability of each label.
    pub(crate) outputs: Vec<Vec<f32>>,
    /// The number, or the label's index.
    pub(crate) labels: Vec<f32>,
}

impl LabelledOutputs {
    /// The absolute differences of a regression.
    #[must_use]
    pub(crate) fn residuals(&self) -> Vec<f64> {
        let pairs = self.outputs.iter().zip(&self.labels);
        pairs.map(|(output, label)| f64::from((output.first().copied().unwrap_or(f32::NAN) - label).abs())).collect()
    }
}

/// Runs the network on every image of a part. Calls `check_cancelled` before each batch.
///
/// # Errors
/// [`TrainingError::Cancelled`], an image that has become unreadable, or an error of libtorch.
pub(crate) fn predict(
    network: &Network,
    normalisation: &Normalisation,
    heads: &[Head],
    set: &ImageSet,
    batch_size: usize,
    check_cancelled: &dyn Fn() -> Result<(), TrainingError>,
) -> Result<Vec<LabelledOutputs>, TrainingError> {
    let mut answers = vec![LabelledOutputs::default(); heads.len()];
    for batch in set.batches(BatchPlan { batch_size, order: Order::Listed, rest: Rest::Kept }) {
        check_cancelled()?;
        let batch = batch?;
        let rgb: Vec<u8> = batch.pixels.iter().flat_map(|pixels| pixels.rgb.iter().copied()).collect();
        let outputs = tch::no_grad(|| -> Result<_, NnError> {
            let images = normalisation.apply(&rgb, batch.pixels.len(), set.side_px())?;
            outputs(heads, &network.forward_t(&images, false)?)
        })?;
        for ((answers, outputs), labels) in answers.iter_mut().zip(outputs).zip(&batch.labels) {
            for (output, label) in outputs.into_iter().zip(labels).filter(|(_, label)| !label.is_nan()) {
                answers.outputs.push(output);
                answers.labels.push(*label);
            }
        }
    }
    Ok(answers)
}

/// Returns each head's output for every image.
fn outputs(heads: &[Head], raw: &HeadOutput) -> Result<Vec<Vec<Vec<f32>>>, NnError> {
    let rows = |tensor: &Tensor| -> Result<Vec<Vec<f32>>, NnError> {
        let flat = tensor.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_view([-1])?;
        let width = tensor.size().last().copied().and_then(|width| usize::try_from(width).ok()).unwrap_or(1).max(1);
        Ok(Vec::<f32>::try_from(&flat)?.chunks(width).map(<[f32]>::to_vec).collect())
    };
    heads
        .iter()
        .zip(&raw.heads)
        .map(|(head, tensor)| match &head.target {
            Target::Regression { .. } => rows(tensor),
            Target::Classification { .. } => rows(&tensor.f_softmax(-1, tch::Kind::Float)?),
        })
        .collect()
}

/// Computes a part's metrics: `{head}.mae` and `{head}.rmse`, or `{head}.accuracy`; none for a head without labels.
#[must_use]
pub(crate) fn metrics(heads: &[Head], answers: &[LabelledOutputs]) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    for (head, answers) in heads.iter().zip(answers).filter(|(_, answers)| !answers.labels.is_empty()) {
        let n = answers.labels.len() as f64;
        match &head.target {
            Target::Regression { .. } => {
                let residuals = answers.residuals();
                metrics.insert(format!("{}.mae", head.name), residuals.iter().sum::<f64>() / n);
                let squares: f64 = residuals.iter().map(|residual| residual * residual).sum();
                metrics.insert(format!("{}.rmse", head.name), (squares / n).sqrt());
            }
            Target::Classification { .. } => {
                let pairs = answers.outputs.iter().zip(&answers.labels);
                let n_right = pairs.filter(|(output, label)| best(output) == Some(**label as usize)).count();
                metrics.insert(format!("{}.accuracy", head.name), n_right as f64 / n);
            }
        }
    }
    metrics
}

/// Returns the most probable label's index; the first of equals.
fn best(probabilities: &[f32]) -> Option<usize> {
    let indexed = probabilities.iter().enumerate();
    indexed.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(label_idx, _)| label_idx)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str, target: Target) -> Head {
        Head { name: name.to_owned(), target, column: name.to_owned(), loss_weight: 1.0 }
    }

    #[test]
    fn metrics_are_over_the_labels_that_are_there() {
        let heads = [
            head("age", Target::Regression { unit: String::new() }),
            head("gender", Target::Classification { labels: vec!["a".to_owned(), "b".to_owned()] }),
            head("smoker", Target::Classification { labels: vec!["a".to_owned(), "b".to_owned()] }),
        ];
        let answers = [
            LabelledOutputs { outputs: vec![vec![30.0], vec![44.0]], labels: vec![33.0, 40.0] },
            LabelledOutputs {
                outputs: vec![vec![0.9, 0.1], vec![0.4, 0.6], vec![0.5, 0.5], vec![0.2, 0.8]],
                labels: vec![0.0, 1.0, 1.0, 1.0],
            },
            LabelledOutputs::default(),
        ];
        let expected = [("age.mae", 3.5), ("age.rmse", 12.5_f64.sqrt()), ("gender.accuracy", 0.75)];
        assert_eq!(metrics(&heads, &answers), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
