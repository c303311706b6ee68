//! A labelled face with the answer about it.

use std::collections::BTreeMap;

use visage::{cli::wording::reason, proto::v1};

use super::predicting::{classification, label, regression};
use crate::eval::table::Face;

/// A labelled face that was found, and the answer to it without thresholds.
pub(super) struct Judged<'a> {
    pub(super) face: &'a Face,
    /// True if the version's own thresholds let it answer.
    pub(super) answered: bool,
    pub(super) age: v1::Regression,
    /// The labelled age in years.
    pub(super) truth: f64,
    /// The age's absolute error in years.
    pub(super) error: f64,
    /// `None` without a label or an answer.
    pub(super) gender_right: Option<bool>,
    /// One minus the probability of the predicted gender.
    pub(super) gender_doubt: f64,
    /// The quality signals by name.
    pub(super) quality: BTreeMap<String, f64>,
    /// Why the version abstains under its own thresholds.
    pub(super) reasons: Vec<String>,
}

impl<'a> Judged<'a> {
    /// Compares a label with the answers under the version's own thresholds and without any; `None` without an age.
    pub(super) fn new(
        face: &'a Face,
        strict: Option<&v1::PredictResponse>,
        loose: &v1::PredictResponse,
    ) -> Option<Self> {
        let answered = strict.is_some_and(|answer| regression(answer, "age").is_some());
        let age = regression(loose, "age")?.clone();
        let truth = face.age?;
        let gender = face.gender_name().zip(label(loose, "gender"));
        let reasons = strict.into_iter().flat_map(|answer| answer.abstention_reasons());
        Some(Self {
            face,
            answered,
            error: (age.value - truth).abs(),
            age,
            truth,
            gender_right: gender.map(|(truth, said)| truth == said),
            gender_doubt: classification(loose, "gender").map_or(1.0, |said| 1.0 - said.probability),
            quality: loose.faces.first().map(|reading| reading.quality.clone()).unwrap_or_default(),
            reasons: reasons.map(reason).collect(),
        })
    }

    /// The spread of the age's distribution; infinite if it was not measured.
    pub(super) fn spread(&self) -> f64 {
        self.quality.get("spread").copied().unwrap_or(f64::INFINITY)
    }
}
