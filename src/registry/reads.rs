//! The input of a version and the preprocessing of its pixels.

use crate::{
    names::{EmbeddingSpace, VersionName},
    proto::store::{Detection, FaceChip, Preprocessing},
    vision::{AlignmentBox, CascadeSettings, ChipSettings, DetectorSettings, Point, points},
};

/// The input of a version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reads {
    /// Whole photos, reduced to a square.
    Photos {
        /// The side of the square, in pixels.
        side_px: u32,
        /// The smallest shorter side of a photo that is answered, in pixels.
        min_side_px: u32,
        /// The normalisation of its pixels.
        normalisation: Normalised,
    },
    /// Faces found by a detector, cut out and aligned.
    Faces {
        /// The detector's version.
        detector: VersionName,
        /// The settings for cutting faces out.
        chip: ChipSettings,
        /// The space of the embedding paired with the answers.
        space: Option<EmbeddingSpace>,
        /// The normalisation of their pixels.
        normalisation: Normalised,
    },
    /// Photos; the version finds the faces in them.
    Finds(DetectorSettings),
}

/// The mean and standard deviation used to normalise RGB values in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Normalised {
    /// The means of red, green and blue.
    pub mean: [f32; 3],
    /// Their standard deviations, above 0.
    pub std: [f32; 3],
}

impl Reads {
    /// Parses the stored form; the error text names the invalid part.
    ///
    /// # Errors
    /// When the stored form has features unknown to this program.
    pub(crate) fn parse(stored: Option<&Preprocessing>) -> Result<Self, String> {
        let stored = stored.ok_or("it has no preprocessing")?;
        match (&stored.detection, &stored.face_chip) {
            (Some(_), Some(_)) => Err("it both finds faces and reads them".to_owned()),
            (Some(detection), None) => Ok(Self::Finds(parse_detection(detection)?)),
            (None, Some(chip)) => parse_faces(stored, chip),
            (None, None) => Ok(Self::Photos {
                side_px: stored.image_size_px,
                min_side_px: stored.min_side_px,
                normalisation: parse_normalisation(stored)?,
            }),
        }
    }

    /// Converts to the stored form.
    #[must_use]
    pub(crate) fn to_stored(&self) -> Preprocessing {
        let normalised = |side_px: u32, normalisation: &Normalised| Preprocessing {
            image_size_px: side_px,
            mean: normalisation.mean.to_vec(),
            std: normalisation.std.to_vec(),
            ..Preprocessing::default()
        };
        match self {
            Self::Photos { side_px, min_side_px, normalisation } => {
                Preprocessing { min_side_px: *min_side_px, ..normalised(*side_px, normalisation) }
            }
            Self::Faces { detector, chip, space, normalisation } => Preprocessing {
                face_chip: Some(FaceChip {
                    detector: detector.to_string(),
                    embedding_space: space.as_ref().map(ToString::to_string).unwrap_or_default(),
                    padding: chip.padding,
                    template: numbers(&chip.template),
                }),
                ..normalised(chip.side_px, normalisation)
            },
            Self::Finds(settings) => Preprocessing {
                detection: Some(Detection {
                    min_face_px: settings.cascade.min_face_px,
                    factor: settings.cascade.factor,
                    thresholds: settings.cascade.thresholds.to_vec(),
                    max_side_px: settings.cascade.max_side_px,
                    landmark_template: settings.landmarks.as_ref().map(numbers).unwrap_or_default(),
                    alignment_box: settings
                        .alignment_box
                        .map(|expected| vec![expected.centre.x, expected.centre.y, expected.side])
                        .unwrap_or_default(),
                }),
                ..Preprocessing::default()
            },
        }
    }
}

fn parse_faces(stored: &Preprocessing, chip: &FaceChip) -> Result<Reads, String> {
    let detector = VersionName::parse("detector", &chip.detector).map_err(|e| format!("its {e}"))?;
    let space = match chip.embedding_space.as_str() {
        "" => None,
        space => Some(EmbeddingSpace::parse("embedding_space", space).map_err(|e| format!("its {e}"))?),
    };
    let template = points(&chip.template)
        .ok_or_else(|| format!("its chip's template has {} numbers, not 10", chip.template.len()))?;
    if stored.image_size_px < 2 || !chip.padding.is_finite() {
        let (side_px, padding) = (stored.image_size_px, chip.padding);
        return Err(format!("its chips of {side_px} pixels with a padding of {padding} cannot be cut out"));
    }
    let chip = ChipSettings { side_px: stored.image_size_px, padding: chip.padding, template };
    Ok(Reads::Faces { detector, chip, space, normalisation: parse_normalisation(stored)? })
}

fn parse_detection(detection: &Detection) -> Result<DetectorSettings, String> {
    let thresholds = <[f32; 3]>::try_from(detection.thresholds.as_slice())
        .map_err(|_| format!("it has {} thresholds for detection, not 3", detection.thresholds.len()))?;
    let is_share = detection.factor > 0.0 && detection.factor < 1.0;
    if !is_share || detection.min_face_px.is_nan() {
        return Err(format!(
            "it cannot detect faces from {} pixels in steps of {}",
            detection.min_face_px, detection.factor
        ));
    }
    let cascade = CascadeSettings {
        min_face_px: detection.min_face_px,
        factor: detection.factor,
        thresholds,
        max_side_px: detection.max_side_px,
    };
    let landmarks = points(&detection.landmark_template);
    let alignment_box = match (detection.alignment_box.as_slice(), landmarks) {
        ([], _) => None,
        (&[x, y, side], Some(landmarks)) => Some(AlignmentBox { landmarks, centre: Point { x, y }, side }),
        (numbers, _) => return Err(format!("its alignment box {numbers:?} needs landmarks and 3 numbers")),
    };
    Ok(DetectorSettings { cascade, landmarks, alignment_box })
}

fn parse_normalisation(stored: &Preprocessing) -> Result<Normalised, String> {
    let three = |what: &str, values: &[f32]| {
        <[f32; 3]>::try_from(values).map_err(|_| format!("its {what} has {} values, not 3", values.len()))
    };
    let (mean, std) = (three("mean", &stored.mean)?, three("std", &stored.std)?);
    if !std.iter().all(|&s| s.is_finite() && s > 0.0) {
        return Err(format!("its std {std:?} is not above zero"));
    }
    Ok(Normalised { mean, std })
}

fn numbers(points: &[Point; 5]) -> Vec<f32> {
    points.iter().flat_map(|point| [point.x, point.y]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> [Preprocessing; 3] {
        let normalised =
            Preprocessing { image_size_px: 64, mean: vec![0.5; 3], std: vec![0.2; 3], ..Preprocessing::default() };
        let ten: Vec<f32> = (0..10_u8).map(f32::from).collect();
        let chip = FaceChip {
            detector: "models/mtcnn/versions/1".to_owned(),
            embedding_space: "models/descriptor/versions/2#descriptor128".to_owned(),
            padding: 0.25,
            template: ten.clone(),
        };
        let detection = Detection {
            min_face_px: 20.0,
            factor: 0.7,
            thresholds: vec![0.6, 0.7, 0.8],
            max_side_px: 1024,
            landmark_template: ten,
            alignment_box: vec![0.5, 0.5, 1.2],
        };
        [
            Preprocessing { min_side_px: 16, ..normalised.clone() },
            Preprocessing { face_chip: Some(chip), ..normalised },
            Preprocessing { detection: Some(detection), ..Preprocessing::default() },
        ]
    }

    #[test]
    fn what_is_stored_comes_back() {
        for stored in stored() {
            assert_eq!(Reads::parse(Some(&stored)).unwrap().to_stored(), stored);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |at: usize, spoil: fn(&mut Preprocessing)| {
            let mut stored = stored()[at].clone();
            spoil(&mut stored);
            Reads::parse(Some(&stored)).unwrap_err()
        };
        assert!(Reads::parse(None).is_err());
        assert!(refused(0, |p| p.std.truncate(2)).contains("2 values"));
        assert!(refused(0, |p| p.std[0] = 0.0).contains("above zero"));
        assert!(refused(1, |p| p.image_size_px = 1).contains("1 pixels"));
        assert!(refused(1, |p| p.face_chip.as_mut().unwrap().detector = "models/mtcnn".into()).contains("detector"));
        assert!(refused(1, |p| p.face_chip.as_mut().unwrap().template.truncate(9)).contains("9 numbers"));
        assert!(refused(1, |p| p.detection = Some(Detection::default())).contains("both"));
        assert!(refused(2, |p| p.detection.as_mut().unwrap().thresholds.truncate(2)).contains("2 thresholds"));
        assert!(refused(2, |p| p.detection.as_mut().unwrap().factor = 1.0).contains("steps of 1"));
        assert!(refused(2, |p| p.detection.as_mut().unwrap().alignment_box.truncate(2)).contains("alignment"));
    }
}
