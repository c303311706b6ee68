//! Converts a network's output to the contract's typed predictions.

use super::AppError;
use crate::{
    proto::v1::{ClassProbability, Classification, Prediction, Regression, prediction},
    registry::{AnswerKind, Head, Interval, Version},
    serving::{ImageOutput, ServeError},
};

/// Returns one prediction per head, in the version's order.
///
/// A regression's interval is the value plus and minus the calibrated half width, which may grow with the spread of the
/// head's own distribution. Without a calibration, a head has no interval. A classification lists every label, most
/// probable first; equal ones keep the version's order.
///
/// # Errors
/// [`ServeError::EngineFailed`] when the output does not fit the version's heads, or is not finite.
pub(super) fn predictions(version: &Version, output: &ImageOutput) -> Result<Vec<Prediction>, AppError> {
    if output.heads.len() != version.heads.len() {
        let detail = format!("the output has {} heads, the version has {}", output.heads.len(), version.heads.len());
        return Err(failed(version, detail));
    }
    let spread = |head_idx: usize| output.spreads.get(head_idx).copied().flatten();
    let heads = version.heads.iter().zip(&output.heads).enumerate();
    heads
        .map(|(i, (head, values))| prediction(head, values, spread(i)).map_err(|detail| failed(version, detail)))
        .collect()
}

fn prediction(head: &Head, values: &[f32], spread: Option<f32>) -> Result<Prediction, String> {
    if values.iter().any(|v| !v.is_finite()) {
        return Err(format!("the output of head {} is not finite", head.name));
    }
    let result = match (&head.kind, values) {
        (AnswerKind::Regression { unit, interval }, [value]) => {
            prediction::Result::Regression(regression(unit, *interval, f64::from(*value), spread))
        }
        (AnswerKind::Classification { labels }, [_, ..]) if labels.len() == values.len() => {
            prediction::Result::Classification(classification(labels, values))
        }
        _ => return Err(format!("the output of head {} has {} values", head.name, values.len())),
    };
    Ok(Prediction { head: head.name.clone(), result: Some(result) })
}

fn regression(unit: &str, interval: Option<Interval>, value: f64, spread: Option<f32>) -> Regression {
    let half_width = interval.map(|i| i.half_width + i.half_width_per_spread * f64::from(spread.unwrap_or(0.0)));
    Regression {
        value,
        lower: half_width.map(|half_width| value - half_width),
        upper: half_width.map(|half_width| value + half_width),
        coverage: interval.map(|interval| interval.coverage),
        unit: unit.to_owned(),
    }
}

fn classification(labels: &[String], probabilities: &[f32]) -> Classification {
    let mut classes: Vec<ClassProbability> = labels
        .iter()
        .zip(probabilities)
        .map(|(label, &probability)| ClassProbability { label: label.clone(), probability: probability.into() })
        .collect();
    classes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let (label, probability) = classes.first().map(|c| (c.label.clone(), c.probability)).unwrap_or_default();
    Classification { label, probability, classes }
}

fn failed(version: &Version, detail: String) -> AppError {
    ServeError::EngineFailed { stage: version.name.clone().into(), detail }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        names::ModelId,
        proto::{store::HeadCalibration, v1},
        registry::{NewVersion, Normalised, Origin, Reads},
    };

    fn version(half_width_per_spread: f64) -> Version {
        let years = v1::RegressionHead { unit: "years".into() };
        let labels = ["no", "sometimes", "yes"].map(String::from).to_vec();
        let head = |name: &str, kind| v1::Head { name: name.into(), kind: Some(kind), ..Default::default() };
        let model = ModelId::parse("model", "faces").unwrap();
        let normalisation = Normalised { mean: [0.5; 3], std: [0.2; 3] };
        let reads = Reads::Photos { side_px: 64, min_side_px: 16, normalisation };
        let new = NewVersion {
            heads: vec![
                head("age", v1::head::Kind::Regression(years.clone())),
                head("smoker", v1::head::Kind::Classification(v1::ClassificationHead { labels })),
                head("bmi", v1::head::Kind::Regression(years)),
            ],
            calibrations: vec![HeadCalibration {
                head: "age".into(),
                coverage: 0.9,
                half_width: 6.5,
                half_width_per_spread,
                ..Default::default()
            }],
            ..NewVersion::new(model, v1::Architecture::Resnet18, reads, Vec::new(), Origin::default())
        };
        new.unregistered().unwrap()
    }

    fn output(heads: &[&[f32]]) -> ImageOutput {
        ImageOutput::new(heads.iter().map(|h| h.to_vec()).collect(), Default::default())
    }

    #[test]
    fn each_head_is_typed() {
        let all = predictions(&version(0.0), &output(&[&[40.0], &[0.25, 0.25, 0.5], &[22.5]])).unwrap();
        let Some(prediction::Result::Regression(age)) = &all[0].result else { panic!() };
        assert_eq!((age.value, age.lower, age.upper, age.coverage), (40.0, Some(33.5), Some(46.5), Some(0.9)));
        assert_eq!(age.unit, "years");
        let Some(prediction::Result::Classification(smoker)) = &all[1].result else { panic!() };
        assert_eq!((smoker.label.as_str(), smoker.probability), ("yes", 0.5));
        let order: Vec<_> = smoker.classes.iter().map(|c| (c.label.as_str(), c.probability)).collect();
        assert_eq!(order, [("yes", 0.5), ("no", 0.25), ("sometimes", 0.25)]);
        let Some(prediction::Result::Regression(bmi)) = &all[2].result else { panic!() };
        assert_eq!((bmi.value, bmi.lower, bmi.upper, bmi.coverage), (22.5, None, None, None));
    }

    #[test]
    fn an_uncertain_answer_has_a_wider_interval() {
        let spread =
            ImageOutput { spreads: vec![Some(3.0), None, None], ..output(&[&[40.0], &[0.2, 0.3, 0.5], &[1.0]]) };
        let all = predictions(&version(2.0), &spread).unwrap();
        let Some(prediction::Result::Regression(age)) = &all[0].result else { panic!() };
        assert_eq!((age.lower, age.upper), (Some(27.5), Some(52.5)));
    }

    #[test]
    fn an_output_that_does_not_fit_is_an_error() {
        for heads in [
            &[&[40.0][..], &[0.5, 0.5]][..],
            &[&[40.0], &[0.5, 0.5], &[1.0]],
            &[&[40.0, 1.0], &[0.2, 0.3, 0.5], &[1.0]],
            &[&[], &[0.2, 0.3, 0.5], &[1.0]],
            &[&[f32::NAN], &[0.2, 0.3, 0.5], &[1.0]],
            &[&[40.0], &[0.2, f32::INFINITY, 0.5], &[1.0]],
        ] {
            let error = predictions(&version(0.0), &output(heads)).unwrap_err();
            assert!(error.to_string().starts_with("models/faces/versions/0 failed"), "{error}");
        }
    }
}
