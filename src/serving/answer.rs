//! From a network's output to the contract's typed predictions.

use super::{ImageOutput, ServeError};
use crate::proto::{
    store::VersionRecord,
    v1::{self, ClassProbability, Classification, Prediction, Regression, head, prediction},
};

/// One prediction a head, in the version's order.
///
/// A regression gets its interval from the head's calibration: the value, plus and minus the calibrated half width,
/// which may grow with the spread of the head's own distribution; a head without a calibration has none. A classification lists every label, most probable first; of equal ones, in the
/// version's order.
///
/// # Errors
/// [`ServeError::EngineFailed`] when the output does not fit the version's heads, or is no finite number.
pub fn predictions(record: &VersionRecord, output: &ImageOutput) -> Result<Vec<Prediction>, ServeError> {
    if output.heads.len() != record.heads.len() {
        let detail = format!("{} heads answered, the version has {}", output.heads.len(), record.heads.len());
        return Err(failed(record, detail));
    }
    let spread = |head_idx: usize| output.spreads.get(head_idx).copied().flatten();
    let heads = record.heads.iter().zip(&output.heads).enumerate();
    heads.map(|(i, (head, values))| prediction(record, head, values, spread(i))).collect()
}

fn prediction(
    record: &VersionRecord,
    head: &v1::Head,
    values: &[f32],
    spread: Option<f32>,
) -> Result<Prediction, ServeError> {
    if values.iter().any(|v| !v.is_finite()) {
        return Err(failed(record, format!("head {} answered with no finite number", head.name)));
    }
    let result = match (&head.kind, values) {
        (Some(head::Kind::Regression(kind)), [value]) => {
            prediction::Result::Regression(regression(record, &head.name, kind, f64::from(*value), spread))
        }
        (Some(head::Kind::Classification(kind)), [_, ..]) if kind.labels.len() == values.len() => {
            prediction::Result::Classification(classification(&kind.labels, values))
        }
        _ => return Err(failed(record, format!("head {} answered with {} values", head.name, values.len()))),
    };
    Ok(Prediction { head: head.name.clone(), result: Some(result) })
}

fn regression(
    record: &VersionRecord,
    head: &str,
    kind: &v1::RegressionHead,
    value: f64,
    spread: Option<f32>,
) -> Regression {
    let calibration = record.calibrations.iter().find(|c| c.head == head);
    let half_width = calibration.map(|c| c.half_width + c.half_width_per_spread * f64::from(spread.unwrap_or(0.0)));
    Regression {
        value,
        lower: half_width.map(|half_width| value - half_width),
        upper: half_width.map(|half_width| value + half_width),
        coverage: calibration.map(|c| c.coverage),
        unit: kind.unit.clone(),
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

fn failed(record: &VersionRecord, detail: String) -> ServeError {
    ServeError::EngineFailed { version: format!("models/{}/versions/{}", record.model, record.number), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::store::HeadCalibration;

    fn record() -> VersionRecord {
        let years = v1::RegressionHead { unit: "years".into() };
        let labels = ["no", "sometimes", "yes"].map(String::from).to_vec();
        let head = |name: &str, kind| v1::Head { name: name.into(), kind: Some(kind), ..Default::default() };
        VersionRecord {
            model: "faces".into(),
            number: 3,
            heads: vec![
                head("age", head::Kind::Regression(years.clone())),
                head("smoker", head::Kind::Classification(v1::ClassificationHead { labels })),
                head("bmi", head::Kind::Regression(years)),
            ],
            calibrations: vec![HeadCalibration {
                head: "age".into(),
                coverage: 0.9,
                half_width: 6.5,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn output(heads: &[&[f32]]) -> ImageOutput {
        ImageOutput::new(heads.iter().map(|h| h.to_vec()).collect(), Default::default())
    }

    #[test]
    fn each_head_is_typed() {
        let all = predictions(&record(), &output(&[&[40.0], &[0.25, 0.25, 0.5], &[22.5]])).unwrap();
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
        let mut record = record();
        record.calibrations[0].half_width_per_spread = 2.0;
        let spread =
            ImageOutput { spreads: vec![Some(3.0), None, None], ..output(&[&[40.0], &[0.2, 0.3, 0.5], &[1.0]]) };
        let all = predictions(&record, &spread).unwrap();
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
            let error = predictions(&record(), &output(heads)).unwrap_err();
            assert!(error.to_string().starts_with("models/faces/versions/3 failed"), "{error}");
        }
    }
}
