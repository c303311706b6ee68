//! What a face's picture must reach to be answered.

use super::AppError;
use crate::{
    config::FacesConfig,
    proto::v1::{AbstentionReason, QualityThresholds},
    vision::FaceQuality,
};

/// One threshold: its field, how to read it, and what a request may ask for.
struct Field {
    name: &'static str,
    of: fn(&QualityThresholds) -> Option<f64>,
    set: fn(&mut QualityThresholds, f64),
    bounds: fn(&FacesConfig) -> [f64; 2],
}

macro_rules! field {
    ($name:ident) => {
        Field {
            name: stringify!($name),
            of: |thresholds| thresholds.$name,
            set: |thresholds, value| thresholds.$name = Some(value),
            bounds: |config| config.$name,
        }
    };
}

const FIELDS: [Field; 12] = [
    field!(min_face_px),
    field!(min_detection),
    field!(min_sharpness),
    field!(min_brightness),
    field!(max_brightness),
    field!(min_contrast),
    field!(max_yaw_degrees),
    field!(max_pitch_degrees),
    field!(min_symmetry),
    field!(min_visible),
    field!(max_misfit),
    field!(max_spread),
];

/// The version's thresholds, with those that the request names instead.
///
/// # Errors
/// [`AppError::FieldInvalid`] for one outside the bounds of the configuration.
pub(super) fn effective(
    versions: Option<&QualityThresholds>,
    requested: &QualityThresholds,
    config: &FacesConfig,
) -> Result<QualityThresholds, AppError> {
    let mut thresholds = versions.copied().unwrap_or_default();
    for field in &FIELDS {
        let Some(value) = (field.of)(requested) else { continue };
        let [least, most] = (field.bounds)(config);
        // Nothing compares with what is no number.
        if !(least..=most).contains(&value) {
            return Err(AppError::field(
                format!("thresholds.{}", field.name),
                format!(
                    "must be {least} to {most} on this server (faces.{} of its configuration), not {value}",
                    field.name
                ),
            ));
        }
        (field.set)(&mut thresholds, value);
    }
    Ok(thresholds)
}

/// What is wrong with a face's picture; nothing when it is fit.
pub(super) fn judge(quality: &FaceQuality, thresholds: &QualityThresholds) -> Vec<AbstentionReason> {
    let below = |value: f64, least: Option<f64>| least.is_some_and(|least| value < least);
    let above = |value: f64, most: Option<f64>| most.is_some_and(|most| value > most);
    let t = thresholds;
    let verdicts = [
        (below(quality.face_px, t.min_face_px), AbstentionReason::FaceTooSmall),
        (below(quality.sharpness, t.min_sharpness), AbstentionReason::Blurred),
        (
            below(quality.brightness, t.min_brightness)
                || above(quality.brightness, t.max_brightness)
                || below(quality.contrast, t.min_contrast),
            AbstentionReason::BadlyExposed,
        ),
        (
            above(quality.yaw_degrees.abs(), t.max_yaw_degrees)
                || above(quality.pitch_degrees.abs(), t.max_pitch_degrees),
            AbstentionReason::TurnedAway,
        ),
        (
            below(quality.detection, t.min_detection)
                || below(quality.symmetry, t.min_symmetry)
                || below(quality.visible, t.min_visible),
            AbstentionReason::Occluded,
        ),
        (above(quality.misfit, t.max_misfit), AbstentionReason::OutOfRange),
    ];
    verdicts.into_iter().filter_map(|(wrong, reason)| wrong.then_some(reason)).collect()
}

/// Whether an answer of this spread is too far from what the network has seen.
pub(super) fn too_uncertain(spread: Option<f64>, thresholds: &QualityThresholds) -> bool {
    spread.zip(thresholds.max_spread).is_some_and(|(spread, most)| spread > most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> FaceQuality {
        FaceQuality {
            face_px: 100.0,
            detection: 0.99,
            sharpness: 0.5,
            brightness: 0.5,
            contrast: 0.2,
            yaw_degrees: -10.0,
            pitch_degrees: 5.0,
            roll_degrees: 0.0,
            symmetry: 0.8,
            visible: 1.0,
            misfit: 0.02,
        }
    }

    #[test]
    fn each_signal_has_its_reason() {
        let thresholds = QualityThresholds {
            min_face_px: Some(40.0),
            min_detection: Some(0.9),
            min_sharpness: Some(0.1),
            min_brightness: Some(0.2),
            max_brightness: Some(0.8),
            min_contrast: Some(0.05),
            max_yaw_degrees: Some(30.0),
            max_pitch_degrees: Some(30.0),
            min_symmetry: Some(0.3),
            min_visible: Some(0.7),
            max_misfit: Some(0.1),
            max_spread: Some(12.0),
        };
        let judged = |spoil: fn(&mut FaceQuality)| {
            let mut quality = fit();
            spoil(&mut quality);
            judge(&quality, &thresholds)
        };
        assert_eq!(judged(|_| {}), []);
        assert_eq!(judged(|q| q.face_px = 30.0), [AbstentionReason::FaceTooSmall]);
        assert_eq!(judged(|q| q.sharpness = 0.05), [AbstentionReason::Blurred]);
        assert_eq!(judged(|q| q.brightness = 0.1), [AbstentionReason::BadlyExposed]);
        assert_eq!(judged(|q| q.brightness = 0.9), [AbstentionReason::BadlyExposed]);
        assert_eq!(judged(|q| q.pitch_degrees = 40.0), [AbstentionReason::TurnedAway]);
        assert_eq!(judged(|q| q.detection = 0.8), [AbstentionReason::Occluded]);
        assert_eq!(judged(|q| q.visible = 0.5), [AbstentionReason::Occluded]);
        assert_eq!(judged(|q| q.contrast = 0.01), [AbstentionReason::BadlyExposed]);
        assert_eq!(judged(|q| q.yaw_degrees = -50.0), [AbstentionReason::TurnedAway]);
        assert_eq!(judged(|q| q.symmetry = 0.0), [AbstentionReason::Occluded]);
        assert_eq!(judged(|q| q.misfit = 0.3), [AbstentionReason::OutOfRange]);
        let both = [AbstentionReason::FaceTooSmall, AbstentionReason::Blurred];
        assert_eq!(judged(|q| (q.face_px, q.sharpness) = (1.0, 0.0)), both);
        assert_eq!(judge(&fit(), &QualityThresholds::default()), []);
        assert!(too_uncertain(Some(13.0), &thresholds) && !too_uncertain(Some(11.0), &thresholds));
        assert!(!too_uncertain(None, &thresholds));
    }

    #[test]
    fn a_request_overrides_within_bounds() {
        let config = FacesConfig { min_face_px: [20.0, 300.0], ..FacesConfig::default() };
        let versions = QualityThresholds { min_face_px: Some(40.0), min_symmetry: Some(0.2), ..Default::default() };
        let asked = |min_face_px| {
            let requested = QualityThresholds { min_face_px: Some(min_face_px), ..Default::default() };
            effective(Some(&versions), &requested, &config)
        };
        let own = effective(Some(&versions), &QualityThresholds::default(), &config).unwrap();
        assert_eq!(own, versions);
        let lower = asked(25.0).unwrap();
        assert_eq!((lower.min_face_px, lower.min_symmetry), (Some(25.0), Some(0.2)));
        for refused in [10.0, 301.0, f64::NAN] {
            let error = asked(refused).unwrap_err().to_string();
            assert!(error.contains("thresholds.min_face_px") && error.contains("20 to 300"), "{error}");
        }
    }
}
