//! The CPU half of reading faces: prepares a photo for the detector, and cuts out its faces for the networks that read
//! them.

use super::{
    ChipSettings, DecodeLimits, DetectedFace, DetectionView, DetectorSettings, FaceCrop, FaceQuality, ImageError,
    Pixels, Point, Pyramid, cut_chip, detect::FacePart,
};

/// Settings for finding the faces of a photo and cutting them out for each reader.
#[derive(Clone, Debug, PartialEq)]
pub struct FacePipeline {
    detector: DetectorSettings,
    /// One per reader; at least one.
    chips: Vec<ChipSettings>,
    /// Where the cascade's landmarks of an average face lie in the unit square.
    landmarks: [Point; 5],
}

/// A face with its quality and its chips.
#[derive(Clone, Debug, PartialEq)]
pub struct CutFace {
    /// Measurements of how usable the face is.
    pub quality: FaceQuality,
    /// The pixels for each reader, in order; empty if the face is not fit.
    pub chips: Vec<Pixels>,
}

impl FacePipeline {
    /// Creates a pipeline for faces that a detector with these settings finds, cut out for one or two readers.
    #[must_use]
    pub fn new(detector: DetectorSettings, reader: ChipSettings, second: Option<ChipSettings>) -> Self {
        let landmarks = detector.landmarks.unwrap_or(reader.template);
        let mut chips: Vec<_> = std::iter::once(reader).chain(second).collect();
        if detector.alignment_box.is_none() {
            // Without a predictor of the chips' points, faces are aligned by the landmarks themselves.
            chips.iter_mut().for_each(|chip| chip.template = landmarks);
        }
        Self { detector, chips, landmarks }
    }

    /// Decodes a photo and lays it out for the detector.
    ///
    /// # Errors
    /// Those of [`super::decode()`].
    pub fn prepare(&self, photo: &[u8], limits: &DecodeLimits) -> Result<(Pyramid, DetectionView), ImageError> {
        DetectionView::new(photo, limits, &self.detector.cascade)
    }

    /// Returns true if every face can be cut out of the view, without running the detector again.
    #[must_use]
    pub fn is_enough(&self, view: &DetectionView, faces: &[DetectedFace]) -> bool {
        view.is_enough(faces, &self.chips)
    }

    /// Returns the parts of the photo on which the detector runs again, see [`DetectionView::parts`].
    #[must_use]
    pub fn parts(
        &self,
        view: &DetectionView,
        photo: &[u8],
        limits: &DecodeLimits,
        faces: &[DetectedFace],
    ) -> Vec<(FacePart, Pyramid)> {
        view.parts(photo, limits, faces, &self.chips, &self.detector.cascade)
    }

    /// Returns each face with the image to cut it out of, given what the detector `found` in each part.
    #[must_use]
    pub fn crops(
        &self,
        view: &DetectionView,
        faces: Vec<DetectedFace>,
        parts: &[FacePart],
        found: &[Vec<DetectedFace>],
    ) -> Vec<FaceCrop> {
        view.crops(faces, parts, found, &self.chips)
    }

    /// Measures a face's quality, and cuts it out for each reader if it is fit.
    #[must_use]
    pub fn cut(&self, crop: &FaceCrop, is_fit: impl FnOnce(&FaceQuality) -> bool) -> CutFace {
        let (picture, face) = (&*crop.picture, &crop.face);
        let quality = FaceQuality::of(picture, crop.scale, face, &self.landmarks, &self.chips[0].template);
        let cut = |chip: &ChipSettings| cut_chip(picture, &face.alignment, chip).pixels;
        let chips = if is_fit(&quality) { self.chips.iter().map(cut).collect() } else { Vec::new() };
        CutFace { quality, chips }
    }
}
