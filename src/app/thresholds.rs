//! The quality thresholds of faces.

use super::AppError;
use crate::{
    config::FacesConfig,
    proto::v1::{AbstentionReason, QualityThresholds},
};

/// A threshold: its field, the signal compared with it, the reason reported if the signal is beyond it, and the bounds
/// of a request's value.
struct Threshold {
    name: &'static str,
    signal: &'static str,
    side: Side,
    reason: AbstentionReason,
    of: fn(&QualityThresholds) -> Option<f64>,
    set: fn(&mut QualityThresholds, f64),
    bounds: fn(&FacesConfig) -> [f64; 2],
}

#[derive(Clone, Copy)]
enum Side {
    /// The signal must not be below the threshold.
    Least,
    /// The signal's absolute value must not be above the threshold.
    Most,
}

macro_rules! threshold {
    ($name:ident, $side:ident, $signal:expr, $reason:ident) => {
        Threshold {
            name: stringify!($name),
            signal: $signal,
            side: Side::$side,
            reason: AbstentionReason::$reason,
            of: |thresholds| thresholds.$name,
            set: |thresholds, value| thresholds.$name = Some(value),
            bounds: |config| config.$name,
        }
    };
}

/// All thresholds. Those of one reason are adjacent; reasons are reported in this order.
const THRESHOLDS: [Threshold; 12] = [
    threshold!(min_face_px, Least, "face_px", FaceTooSmall),
    threshold!(min_sharpness, Least, "sharpness", Blurred),
    threshold!(min_brightness, Least, "brightness", BadlyExposed),
    threshold!(max_brightness, Most, "brightness", BadlyExposed),
    threshold!(min_contrast, Least, "contrast", BadlyExposed),
    threshold!(max_yaw_degrees, Most, "yaw_degrees", TurnedAway),
    threshold!(max_pitch_degrees, Most, "pitch_degrees", TurnedAway),
    threshold!(min_detection, Least, "detection", Occluded),
    threshold!(min_symmetry, Least, "symmetry", Occluded),
    threshold!(min_visible, Least, "visible", Occluded),
    threshold!(max_misfit, Most, "misfit", OutOfRange),
    threshold!(max_spread, Most, SPREAD, OutOfRange),
];

/// The signal known only from the network's output: the largest standard deviation of a head.
pub(super) const SPREAD: &str = "spread";

/// Returns the signals that can cause this reason; some reasons have none.
#[must_use]
pub(crate) fn signals_of(reason: AbstentionReason) -> Vec<&'static str> {
    let mut signals: Vec<_> = THRESHOLDS.iter().filter(|t| t.reason == reason).map(|t| t.signal).collect();
    signals.dedup();
    signals
}

/// Returns the version's thresholds, overridden by the request's.
///
/// # Errors
/// [`AppError::FieldInvalid`] for a value outside the configured bounds.
pub(super) fn effective(
    versions: Option<&QualityThresholds>,
    requested: &QualityThresholds,
    config: &FacesConfig,
) -> Result<QualityThresholds, AppError> {
    let mut thresholds = versions.copied().unwrap_or_default();
    for threshold in &THRESHOLDS {
        let Some(value) = (threshold.of)(requested) else { continue };
        let [least, most] = (threshold.bounds)(config);
        // This form also refuses NaN.
        if !(least..=most).contains(&value) {
            return Err(AppError::field(
                format!("thresholds.{}", threshold.name),
                format!(
                    "must be {least} to {most} on this server (faces.{} of its configuration), not {value}",
                    threshold.name
                ),
            ));
        }
        (threshold.set)(&mut thresholds, value);
    }
    Ok(thresholds)
}

/// Compares the signals with the thresholds and returns the reasons to abstain; empty if all are within them.
pub(super) fn judge(signals: &[(&str, f64)], thresholds: &QualityThresholds) -> Vec<AbstentionReason> {
    let is_beyond = |threshold: &&Threshold| {
        let signal = signals.iter().find(|(name, _)| *name == threshold.signal);
        signal.zip((threshold.of)(thresholds)).is_some_and(|((_, value), bound)| match threshold.side {
            Side::Least => *value < bound,
            Side::Most => value.abs() > bound,
        })
    };
    let mut reasons: Vec<_> = THRESHOLDS.iter().filter(is_beyond).map(|threshold| threshold.reason).collect();
    reasons.dedup();
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::FaceQuality;

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
            judge(&quality.by_name(), &thresholds)
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
        let all = [AbstentionReason::BadlyExposed, AbstentionReason::Occluded, AbstentionReason::OutOfRange];
        let spoilt = |q: &mut FaceQuality| {
            (q.brightness, q.contrast, q.detection, q.symmetry, q.misfit) = (0.9, 0.0, 0.0, -1.0, 1.0);
        };
        assert_eq!(judged(spoilt), all);
        assert_eq!(judge(&fit().by_name(), &QualityThresholds::default()), []);
        assert_eq!(judge(&[(SPREAD, 13.0)], &thresholds), [AbstentionReason::OutOfRange]);
        assert_eq!(judge(&[(SPREAD, 11.0)], &thresholds), []);
    }

    #[test]
    fn every_threshold_has_a_signal_that_is_measured() {
        let signals = fit().by_name().map(|(name, _)| name);
        for threshold in &THRESHOLDS {
            assert!(signals.contains(&threshold.signal) || threshold.signal == SPREAD, "{}", threshold.name);
            assert!(signals_of(threshold.reason).contains(&threshold.signal));
        }
        assert_eq!(signals_of(AbstentionReason::BadlyExposed), ["brightness", "contrast"]);
        assert_eq!(signals_of(AbstentionReason::NoFace), [""; 0]);
    }

    #[test]
    fn a_request_overrides_within_bounds() {
        let config = FacesConfig { min_face_px: [20.0, 300.0], ..FacesConfig::default() };
        let versions = QualityThresholds { min_face_px: Some(40.0), min_symmetry: Some(0.2), ..Default::default() };
        let with_request = |min_face_px| {
            let requested = QualityThresholds { min_face_px: Some(min_face_px), ..Default::default() };
            effective(Some(&versions), &requested, &config)
        };
        let own = effective(Some(&versions), &QualityThresholds::default(), &config).unwrap();
        assert_eq!(own, versions);
        let lower = with_request(25.0).unwrap();
        assert_eq!((lower.min_face_px, lower.min_symmetry), (Some(25.0), Some(0.2)));
        for refused in [10.0, 301.0, f64::NAN] {
            let error = with_request(refused).unwrap_err().to_string();
            assert!(error.contains("thresholds.min_face_px") && error.contains("20 to 300"), "{error}");
        }
    }
}
