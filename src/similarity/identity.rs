//! The evidence of a score that two faces are one person's.

use crate::proto::v1::{FalseMatchRate, IdentityCalibration, IdentityEvidence};

/// Interprets a score of a calibrated space.
///
/// The probability is logistic in the score, fitted on pairs of the same person and of different people in equal
/// weight. The false-match rate comes from a table of counts, at the highest listed score that this one reaches; so it
/// is never lower than the count at this score.
#[must_use]
pub(crate) fn identity_evidence(calibration: &IdentityCalibration, score: f32) -> IdentityEvidence {
    let score = f64::from(score);
    let log_odds = calibration.intercept + calibration.slope * score;
    IdentityEvidence {
        same_person_probability: 1.0 / (1.0 + (-log_odds).exp()),
        false_match_rate: Some(false_match_rate(calibration, score)),
    }
}

fn false_match_rate(calibration: &IdentityCalibration, score: f64) -> FalseMatchRate {
    let points = &calibration.false_matches;
    let above = points.partition_point(|point| point.score <= score);
    let Some(point) = above.checked_sub(1).and_then(|i| points.get(i)) else {
        // Below the table: at least as many pairs as the first listed score match.
        let lower = points.first().map_or(0.0, |first| first.lower);
        return FalseMatchRate { rate: None, lower, upper: 1.0, supported: lower > 0.0 };
    };
    FalseMatchRate {
        rate: (point.rate > 0.0).then_some(point.rate),
        lower: point.lower,
        upper: point.upper,
        // An interval that reaches zero only bounds the rate from above.
        supported: point.lower > 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::v1::FalseMatchPoint;

    fn calibration() -> IdentityCalibration {
        let point = |score, rate, lower, upper| FalseMatchPoint { score, rate, lower, upper };
        IdentityCalibration {
            intercept: -45.0,
            slope: 50.0,
            false_matches: vec![
                point(0.7, 0.5, 0.45, 0.55),
                point(0.9, 1e-2, 5e-3, 2e-2),
                point(0.95, 1e-4, 0.0, 5e-4),
                point(0.97, 0.0, 0.0, 2e-4),
            ],
            ..IdentityCalibration::default()
        }
    }

    #[test]
    fn the_rate_is_that_of_the_highest_score_reached() {
        let rate = |score| identity_evidence(&calibration(), score).false_match_rate.unwrap();
        assert_eq!(rate(0.92), FalseMatchRate { rate: Some(1e-2), lower: 5e-3, upper: 2e-2, supported: true });
        assert!(!rate(0.96).supported);
        assert_eq!(rate(0.99), FalseMatchRate { rate: None, lower: 0.0, upper: 2e-4, supported: false });
        assert_eq!(rate(0.1), FalseMatchRate { rate: None, lower: 0.45, upper: 1.0, supported: true });
        let empty = identity_evidence(&IdentityCalibration::default(), 0.9).false_match_rate.unwrap();
        assert!(!empty.supported);
    }

    #[test]
    fn even_odds_are_a_half() {
        assert!((identity_evidence(&calibration(), 0.9).same_person_probability - 0.5).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn a_higher_score_is_never_less_alike(a in -1.0..1.0f32, b in -1.0..1.0f32) {
            let (low, high) = (a.min(b), a.max(b));
            let (low, high) = (identity_evidence(&calibration(), low), identity_evidence(&calibration(), high));
            prop_assert!((0.0..=1.0).contains(&low.same_person_probability));
            prop_assert!(low.same_person_probability <= high.same_person_probability);
            prop_assert!(low.false_match_rate.unwrap().upper >= high.false_match_rate.unwrap().upper);
        }
    }
}
