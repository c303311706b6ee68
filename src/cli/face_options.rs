//! Which faces of a photo, and what they must be, as options.

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::failure::Usage;
use crate::proto::v1;

/// Which faces are read.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Faces {
    /// The largest.
    #[default]
    Largest,
    /// Every one.
    All,
    /// The only one; a photo of several is not answered.
    Single,
}

impl From<Faces> for v1::FaceSelection {
    fn from(faces: Faces) -> Self {
        match faces {
            Faces::Largest => Self::Largest,
            Faces::All => Self::All,
            Faces::Single => Self::Single,
        }
    }
}

/// What is asked of a photo's faces.
#[derive(Args, Clone, Debug)]
pub(super) struct FaceArgs {
    /// Which faces of a photo are read.
    #[arg(long, value_enum, default_value_t)]
    faces: Faces,
    /// Answers each face's embedding, too; --json shows its numbers.
    #[arg(long)]
    embedding: bool,
    /// Instead of the version's own threshold, such as min_face_px=20; may be given more than once. There are
    /// min_face_px, min_detection, min_sharpness, min_brightness, max_brightness, min_contrast, max_yaw_degrees,
    /// max_pitch_degrees, min_symmetry, min_visible, max_misfit and max_spread; `visage models show` tells a version's own.
    #[arg(long, value_name = "NAME=NUMBER")]
    threshold: Vec<String>,
}

impl FaceArgs {
    /// The request's fields of these options.
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
    let mut set = v1::QualityThresholds::default();
    for option in options {
        let (name, number) = option.split_once('=').ok_or_else(|| usage(option))?;
        let number: f64 = number.parse().map_err(|_| usage(option))?;
        let Some((_, field)) = fields(&mut set).into_iter().find(|(known, _)| *known == name) else {
            let known = fields(&mut set).map(|(known, _)| known).join(", ");
            bail!(Usage(format!("--threshold {option}: there is no threshold {name}; there are {known}")));
        };
        *field = Some(number);
    }
    Ok(set)
}

/// Every threshold with its name.
pub(super) fn fields(set: &mut v1::QualityThresholds) -> [(&'static str, &mut Option<f64>); 12] {
    [
        ("min_face_px", &mut set.min_face_px),
        ("min_detection", &mut set.min_detection),
        ("min_sharpness", &mut set.min_sharpness),
        ("min_brightness", &mut set.min_brightness),
        ("max_brightness", &mut set.max_brightness),
        ("min_contrast", &mut set.min_contrast),
        ("max_yaw_degrees", &mut set.max_yaw_degrees),
        ("max_pitch_degrees", &mut set.max_pitch_degrees),
        ("min_symmetry", &mut set.min_symmetry),
        ("min_visible", &mut set.min_visible),
        ("max_misfit", &mut set.max_misfit),
        ("max_spread", &mut set.max_spread),
    ]
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
        for wrong in ["min_face_px", "min_face_px=few", "least=1"] {
            assert!(thresholds(&[wrong.to_owned()]).unwrap_err().to_string().contains(wrong));
        }
    }
}
