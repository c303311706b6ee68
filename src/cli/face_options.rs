//! The options that select a photo's faces and their thresholds.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::failure::Usage;
use crate::proto::v1;

/// The faces to read.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum FaceChoice {
    /// The largest face.
    #[default]
    Largest,
    /// Every face.
    All,
    /// The only face; a photo with several is refused.
    Single,
}

impl From<FaceChoice> for v1::FaceSelection {
    fn from(faces: FaceChoice) -> Self {
        match faces {
            FaceChoice::Largest => Self::Largest,
            FaceChoice::All => Self::All,
            FaceChoice::Single => Self::Single,
        }
    }
}

/// The options for a photo's faces.
#[derive(Args, Clone, Debug)]
pub(super) struct FaceArgs {
    /// Selects the faces of a photo to read.
    #[arg(long, value_enum, default_value_t)]
    faces: FaceChoice,
    /// Also returns each face's embedding; --json shows its numbers.
    #[arg(long)]
    embedding: bool,
    /// Replaces one of the version's thresholds, such as min_face_px=20; may be given more than once. The names are
    /// min_face_px, min_detection, min_sharpness, min_brightness, max_brightness, min_contrast, max_yaw_degrees,
    /// max_pitch_degrees, min_symmetry, min_visible, max_misfit and max_spread; `visage models show` shows a version's
    /// own.
    #[arg(long, value_name = "NAME=NUMBER")]
    threshold: Vec<String>,
}

impl FaceArgs {
    /// Returns a request with the fields of these options.
    pub(super) fn request(&self) -> anyhow::Result<v1::PredictRequest> {
        let thresholds = if self.threshold.is_empty() { None } else { Some(thresholds(&self.threshold)?) };
        Ok(v1::PredictRequest {
            face_selection: v1::FaceSelection::from(self.faces).into(),
            return_embedding: self.embedding,
            thresholds,
            ..v1::PredictRequest::default()
        })
    }
}

fn thresholds(options: &[String]) -> anyhow::Result<v1::QualityThresholds> {
    let mut set = by_name(&v1::QualityThresholds::default())?;
    for option in options {
        let (name, number) = option.split_once('=').ok_or_else(|| usage(option))?;
        let number: f64 = number.parse().map_err(|_| usage(option))?;
        if !number.is_finite() {
            bail!(usage(option));
        }
        let Some(value) = set.get_mut(name) else {
            let known = set.keys().cloned().collect::<Vec<_>>().join(", ");
            bail!(Usage(format!("--threshold {option}: unknown threshold {name}; use one of {known}")));
        };
        *value = Some(number);
    }
    Ok(serde_json::from_value(serde_json::to_value(set)?)?)
}

/// Returns every threshold by its name.
pub(super) fn by_name(set: &v1::QualityThresholds) -> anyhow::Result<BTreeMap<String, Option<f64>>> {
    Ok(serde_json::from_value(serde_json::to_value(set)?)?)
}

fn usage(option: &str) -> Usage {
    Usage(format!("--threshold {option}: must be NAME=NUMBER, such as min_face_px=20"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_set_by_name() {
        let set = thresholds(&["min_face_px=20".to_owned(), "max_misfit=0.5".to_owned()]).unwrap();
        assert_eq!((set.min_face_px, set.max_misfit, set.min_symmetry), (Some(20.0), Some(0.5), None));
        for wrong in ["min_face_px", "min_face_px=few", "min_face_px=nan", "min_face_px=inf", "least=1"] {
            assert!(thresholds(&[wrong.to_owned()]).unwrap_err().to_string().contains(wrong));
        }
    }
}
