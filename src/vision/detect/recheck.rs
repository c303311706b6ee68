//! Runs the detector again on parts of a photo, because faces are first searched for in a small view of it.
//!
//! Where a face's chip needs more pixels than the view has, the part around the face is decoded at the size that the
//! chip needs and detected anew. Box and points are then as exact as if the part had been sent alone. A face whose
//! score is unusually low is also detected rotated by 180 degrees, and read that way if that scores higher: faces
//! upside down are sometimes detected, but the readers' results for them are meaningless.

use std::sync::Arc;

use super::{
    boxes::{BoundingBox, DetectedFace},
    pyramid::{CascadeSettings, Pyramid},
};
use crate::vision::{
    ChipSettings, DecodeLimits, DecodeSize, DecodedImage, ImageError, PhotoNote, decode, pixels_shown,
};

/// The detector also runs on a face rotated by 180 degrees in two cases: the score is below `UNCERTAIN_SCORE`, or the
/// rotated face was scored and has at least `ROTATED_SCORE`. These are 1 to 5 in 100 of the upright faces that are
/// answered, and all but 1 in 300 of the faces upside down; measured with the published weights.
const UNCERTAIN_SCORE: f32 = 0.99;
const ROTATED_SCORE: f32 = 0.9;

/// The number of image pixels, along a line, that a pixel of the finest chip should cover. With 1, nothing is enlarged,
/// but ages differ up to 0.2 years more from those of the same face sent alone than with 1.5. With 2, they do not
/// differ less.
const ENOUGH_PIXELS: f64 = 1.5;

/// The minimum overlap (intersection over union) of a face with its earlier box. In a view at 1/8 the box of a small
/// face is only accurate to some pixels.
const SAME_FACE: f32 = 0.3;

/// The same for a face that was upside down. Its earlier box may have covered only half of the face and a collar.
const SAME_UPSIDE_DOWN: f32 = 0.05;

/// The side of a part, in sides of the face's box: room for every chip at any tilt of the head.
const PART_SIDES: f32 = 4.0;

/// The smallest face that is searched for in a part, in sides of the expected box.
const MIN_FACE_SIDES: f64 = 0.5;

/// The largest decoded photo that is kept until its faces are cut out, in pixels; larger ones are decoded again when
/// needed.
const MAX_KEPT_PIXELS: u64 = 1536 * 1536;

/// A photo at the size at which faces were searched for.
pub struct DetectionView {
    /// The photo at detection size.
    photo: Arc<DecodedImage>,
    /// The photo as decoded, if it is larger and within `MAX_KEPT_PIXELS`.
    decoded: Option<Arc<DecodedImage>>,
    /// Width and height of the photo as sent, in pixels.
    sent: (f32, f32),
    notes: Vec<PhotoNote>,
}

/// A face and the image that it is cut out of.
pub struct FaceCrop {
    /// The photo or the part of it around the face; rotated by 180 degrees if the face is upside down.
    pub picture: Arc<DecodedImage>,
    /// The face in pixels of `picture`.
    pub face: DetectedFace,
    /// The face in pixels of the photo as sent.
    pub sent: DetectedFace,
    /// Whether the face is upside down in the photo.
    pub upside_down: bool,
    /// Pixels of the photo as sent per pixel of `picture`, along a line. It is 1 where `picture` has fewer pixels than
    /// the chips cover, so that only pixels that were read count.
    pub scale: f64,
}

/// A part of a photo in which one face is detected again.
pub struct FacePart {
    face_idx: usize,
    picture: Arc<DecodedImage>,
    /// Where the face is expected, in pixels of the part's image.
    expected: BoundingBox,
    upside_down: bool,
    /// Scale and offset from the part's pixels to those of the photo as sent.
    to_sent: ((f32, f32), (f32, f32)),
}

impl DetectionView {
    /// Decodes a photo and lays it out for the detector.
    ///
    /// # Errors
    /// Those of [`decode()`].
    pub fn new(image: &[u8], limits: &DecodeLimits, settings: &CascadeSettings) -> Result<(Pyramid, Self), ImageError> {
        // Three quarters are enough to detect faces, and spare decoding a slightly larger photo in full.
        let decoded = Arc::new(decode(image, limits, DecodeSize::LongSide(settings.max_side_px / 4 * 3))?);
        let pyramid = Pyramid::new(Arc::clone(&decoded), settings);
        let photo = Arc::clone(pyramid.photo());
        let notes = decoded.notes().to_vec();
        let sent = (decoded.full_width_px() as f32, decoded.full_height_px() as f32);
        let n_pixels = u64::from(decoded.width_px()) * u64::from(decoded.height_px());
        let is_kept = decoded.width_px() > photo.width_px() && n_pixels <= MAX_KEPT_PIXELS;
        Ok((pyramid, Self { photo, decoded: is_kept.then_some(decoded), sent, notes }))
    }

    /// The defects of the photo's file.
    #[must_use]
    pub fn notes(&self) -> &[PhotoNote] {
        &self.notes
    }

    /// Returns true if every face can be cut out of the view, without running the detector again.
    #[must_use]
    pub fn is_enough(&self, faces: &[DetectedFace], chips: &[ChipSettings]) -> bool {
        faces.iter().all(|face| self.enlargement(face, chips) <= 1.0 && !may_be_upside_down(face))
    }

    /// Returns the parts of the photo on which the detector runs again for these faces. Decodes `image` once more if
    /// the view has too few pixels; if that fails, cuts the parts from the pixels at hand.
    #[must_use]
    pub fn parts(
        &self,
        image: &[u8],
        limits: &DecodeLimits,
        faces: &[DetectedFace],
        chips: &[ChipSettings],
        settings: &CascadeSettings,
    ) -> Vec<(FacePart, Pyramid)> {
        let most = faces.iter().map(|face| self.enlargement(face, chips)).fold(1.0, f64::max);
        let long_side = f64::from(long_side(&self.photo));
        let source = self.larger(image, limits, (long_side * most).round() as u32);
        let mut parts = Vec::new();
        for (face_idx, face) in faces.iter().enumerate() {
            // `crops` applies the parts in order, so the upright one must come first.
            if self.enlargement(face, chips) > 1.0 {
                parts.push(self.part(face_idx, face, &source, false, chips, settings));
            }
            if may_be_upside_down(face) {
                parts.push(self.part(face_idx, face, &source, true, chips, settings));
            }
        }
        parts
    }

    /// Returns each face with the image to cut it out of, given what the detector `found` in each part.
    #[must_use]
    pub fn crops(
        &self,
        faces: Vec<DetectedFace>,
        parts: &[FacePart],
        found: &[Vec<DetectedFace>],
        chips: &[ChipSettings],
    ) -> Vec<FaceCrop> {
        let mut crops: Vec<FaceCrop> = faces.into_iter().map(|face| self.crop(face, chips)).collect();
        for (part, found) in parts.iter().zip(found) {
            let Some(before) = crops.get_mut(part.face_idx) else { continue };
            if let Some(face) = part.find(found).filter(|face| !part.upside_down || face.score > before.face.score) {
                *before = part.crop(face, chips);
            }
        }
        crops
    }

    /// Cuts a face out of the view.
    fn crop(&self, face: DetectedFace, chips: &[ChipSettings]) -> FaceCrop {
        let (x, y) = self.sent_per(&self.photo);
        FaceCrop::new(Arc::clone(&self.photo), face, face.scaled(x, y), false, x.min(y), chips)
    }

    /// Pixels of the photo as sent per pixel of `picture`, which shows the whole photo.
    fn sent_per(&self, picture: &DecodedImage) -> (f32, f32) {
        (self.sent.0 / picture.width_px() as f32, self.sent.1 / picture.height_px() as f32)
    }

    /// Returns the factor by which the view's sides must grow to read the face from enough pixels. It is 1 if the view
    /// has them or cannot be enlarged.
    fn enlargement(&self, face: &DetectedFace, chips: &[ChipSettings]) -> f64 {
        let (x, y) = self.sent_per(&self.photo);
        (ENOUGH_PIXELS / shown(face, chips)).clamp(1.0, f64::from(x.max(y)).max(1.0))
    }

    /// Returns the photo with its long side at least this long. Falls back to the decoded pixels at hand if decoding
    /// fails, for example at the memory limit or in another decoder.
    fn larger(&self, image: &[u8], limits: &DecodeLimits, long_side_px: u32) -> Arc<DecodedImage> {
        let kept = self.decoded.as_ref().unwrap_or(&self.photo);
        if long_side(kept) >= long_side_px {
            return Arc::clone(kept);
        }
        decode(image, limits, DecodeSize::LongSide(long_side_px)).map_or_else(|_| Arc::clone(kept), Arc::new)
    }

    /// Cuts the part around a face from `source`, which shows the whole photo, with the resolution that the chips need.
    fn part(
        &self,
        face_idx: usize,
        face: &DetectedFace,
        source: &DecodedImage,
        upside_down: bool,
        chips: &[ChipSettings],
        settings: &CascadeSettings,
    ) -> (FacePart, Pyramid) {
        let (x, y) = self.sent_per(&self.photo);
        let (to_sent_x, to_sent_y) = self.sent_per(source);
        let expected = face.scaled(x / to_sent_x, y / to_sent_y);
        let BoundingBox { left, top, right, bottom } = expected.bounds;
        let half = expected.bounds.width().max(expected.bounds.height()) * PART_SIDES / 2.0;
        let span = |centre: f32, side: u32| {
            let start = (centre - half).clamp(0.0, side as f32 - 1.0) as u32;
            (start, ((centre + half).ceil().max(1.0) as u32).clamp(start + 1, side) - start)
        };
        let (from_x, width) = span((left + right) / 2.0, source.width_px());
        let (from_y, height) = span((top + bottom) / 2.0, source.height_px());
        // The photo may have been decoded larger for another face, and not every face size is searched for.
        let needed = 2.0 * ENOUGH_PIXELS / shown(&expected, chips);
        let reduction = needed.min(f64::from(settings.longest_side_px()) / f64::from(width.max(height))).min(1.0);
        let reduced = |side: u32| (f64::from(side) * reduction) as u32;
        let picture = source.part((from_x, from_y, width, height), (reduced(width), reduced(height)));
        let picture = if upside_down { picture.rotated_180() } else { picture };
        let (px, py) = (width as f32 / picture.width_px() as f32, height as f32 / picture.height_px() as f32);
        let expected = expected.shifted(-(from_x as f32), -(from_y as f32)).scaled(1.0 / px, 1.0 / py);
        let expected =
            if upside_down { expected.rotated_180(picture.width_px(), picture.height_px()) } else { expected };
        let side = f64::from(expected.bounds.width().min(expected.bounds.height()));
        let settings = CascadeSettings { min_face_px: (side * MIN_FACE_SIDES).max(settings.min_face_px), ..*settings };
        let pyramid = Pyramid::new(picture, &settings);
        let part = FacePart {
            face_idx,
            picture: Arc::clone(pyramid.photo()),
            expected: expected.bounds,
            upside_down,
            to_sent: ((px * to_sent_x, py * to_sent_y), (from_x as f32 * to_sent_x, from_y as f32 * to_sent_y)),
        };
        (part, pyramid)
    }
}

impl FaceCrop {
    fn new(
        picture: Arc<DecodedImage>,
        face: DetectedFace,
        sent: DetectedFace,
        upside_down: bool,
        sent_per_px: f32,
        chips: &[ChipSettings],
    ) -> Self {
        let scale = if shown(&face, chips) < 1.0 { 1.0 } else { sent_per_px.into() };
        Self { picture, face, sent, upside_down, scale }
    }
}

impl FacePart {
    /// Returns the expected face if it is among `faces`.
    fn find(&self, faces: &[DetectedFace]) -> Option<DetectedFace> {
        let least = if self.upside_down { SAME_UPSIDE_DOWN } else { SAME_FACE };
        let overlap = |face: &DetectedFace| face.bounds.iou(&self.expected);
        let best = faces.iter().max_by(|a, b| overlap(a).total_cmp(&overlap(b)))?;
        (overlap(best) >= least).then_some(*best)
    }

    fn crop(&self, face: DetectedFace, chips: &[ChipSettings]) -> FaceCrop {
        let as_sent =
            if self.upside_down { face.rotated_180(self.picture.width_px(), self.picture.height_px()) } else { face };
        let ((x, y), from) = self.to_sent;
        let sent = as_sent.scaled(x, y).shifted(from.0, from.1);
        FaceCrop::new(Arc::clone(&self.picture), face, sent, self.upside_down, x.min(y), chips)
    }
}

fn may_be_upside_down(face: &DetectedFace) -> bool {
    face.score < UNCERTAIN_SCORE || face.rotated_score.is_some_and(|score| score >= ROTATED_SCORE)
}

/// Image pixels, along a line, that a pixel of the finest chip covers; above 0.
fn shown(face: &DetectedFace, chips: &[ChipSettings]) -> f64 {
    chips.iter().map(|chip| pixels_shown(&face.alignment, chip)).fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE)
}

fn long_side(picture: &DecodedImage) -> u32 {
    picture.width_px().max(picture.height_px())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;
    use crate::vision::Point;

    const CHIP: ChipSettings = ChipSettings {
        side_px: 150,
        padding: 0.25,
        template: [
            Point { x: 0.3, y: 0.35 },
            Point { x: 0.7, y: 0.35 },
            Point { x: 0.5, y: 0.6 },
            Point { x: 0.35, y: 0.8 },
            Point { x: 0.65, y: 0.8 },
        ],
    };

    /// A face that fills a square.
    fn face(left: f32, top: f32, side: f32, score: f32) -> DetectedFace {
        let points = CHIP.template.map(|p| Point { x: left + p.x * side, y: top + p.y * side });
        let bounds = BoundingBox { left, top, right: left + side, bottom: top + side };
        DetectedFace { bounds, score, landmarks: points, alignment: points, rotated_score: None }
    }

    fn photo(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_fn(width, height, |x, y| Rgb([(x / 16) as u8, (y / 16) as u8, 90]))
            .write_to(&mut bytes, ImageFormat::Jpeg)
            .unwrap();
        bytes.into_inner()
    }

    fn nearly(a: &BoundingBox, b: &BoundingBox, px: f32) -> bool {
        [(a.left, b.left), (a.top, b.top), (a.right, b.right), (a.bottom, b.bottom)]
            .iter()
            .all(|(a, b)| (a - b).abs() <= px)
    }

    /// Parts of a small and a large face, both of low score: each has enough pixels, none exceeds the detection size,
    /// and what is found in it is mapped back to the photo.
    #[test]
    fn every_face_gets_a_part_of_the_size_that_it_needs() {
        let (limits, settings) = (DecodeLimits::default(), CascadeSettings::default());
        let bytes = photo(4032, 3024);
        let (_, view) = DetectionView::new(&bytes, &limits, &settings).unwrap();
        // Of 1008 pixels; one in a corner, so that its part is clipped.
        let faces = vec![face(40.0, 30.0, 30.0, 0.98), face(500.0, 300.0, 300.0, 0.98), face(200.0, 600.0, 90.0, 1.0)];
        assert!(!view.is_enough(&faces, &[CHIP]));
        let large = face(500.0, 300.0, 300.0, 0.995);
        assert!(view.is_enough(&[large], &[CHIP]));
        assert!(view.is_enough(&[DetectedFace { rotated_score: Some(0.89), ..large }], &[CHIP]));
        assert!(!view.is_enough(&[DetectedFace { rotated_score: Some(0.91), ..large }], &[CHIP]));
        let parts = view.parts(&bytes, &limits, &faces, &[CHIP], &settings);
        let which: Vec<_> = parts.iter().map(|(part, _)| (part.face_idx, part.upside_down)).collect();
        assert_eq!(which, [(0, false), (0, true), (1, true), (2, false)]);
        let mut found = Vec::new();
        for (part, pyramid) in &parts {
            assert!(pyramid.n_levels() > 0 && part.picture.width_px().max(part.picture.height_px()) <= 1024);
            let side = part.expected.width();
            assert!((20.0..400.0).contains(&side), "{side}");
            // Found where it was expected, with a higher score upside down.
            let score = if part.upside_down { 0.999 } else { 0.998 };
            found.push(vec![face(part.expected.left, part.expected.top, side, score)]);
        }
        let parts: Vec<FacePart> = parts.into_iter().map(|(part, _)| part).collect();
        let crops = view.crops(faces.clone(), &parts, &found, &[CHIP]);
        for (crop, face) in crops.iter().zip(&faces) {
            let sent = face.scaled(4.0, 4.0);
            assert!(nearly(&crop.sent.bounds, &sent.bounds, 8.0), "{:?} {sent:?}", crop.sent);
            assert!(shown(&crop.face, &[CHIP]) >= 1.0 && crop.scale >= 1.0);
        }
        assert_eq!(crops.iter().map(|crop| crop.upside_down).collect::<Vec<_>>(), [true, true, false]);
        // A lower score upside down, or nothing found: the face is unchanged.
        let unsure: Vec<_> = parts.iter().map(|part| vec![face(part.expected.left, 0.0, 1.0, 0.5)]).collect();
        let crops = view.crops(faces.clone(), &parts, &unsure, &[CHIP]);
        assert!(crops.iter().zip(&faces).all(|(crop, face)| crop.face == *face && !crop.upside_down));
        // Thirty pixels for the hundred that the chip covers: only those were read, whatever the photo has.
        assert_eq!(crops[0].scale, 1.0);
        assert_eq!(crops[1].scale, 4.0);
    }

    #[test]
    fn what_cannot_be_decoded_larger_is_taken_from_what_there_is() {
        let settings = CascadeSettings::default();
        let bytes = photo(4032, 3024);
        let (_, view) = DetectionView::new(&bytes, &DecodeLimits::default(), &settings).unwrap();
        let few = DecodeLimits { max_alloc_bytes: 8 << 20, ..DecodeLimits::default() };
        let parts = view.parts(&bytes, &few, &[face(300.0, 300.0, 40.0, 1.0)], &[CHIP], &settings);
        assert_eq!(parts.len(), 1);
        assert!((parts[0].0.expected.width() - 40.0).abs() < 1.0, "{:?}", parts[0].0.expected);
    }

    #[test]
    fn points_that_are_no_numbers_do_no_harm() {
        let (limits, settings) = (DecodeLimits::default(), CascadeSettings::default());
        let bytes = photo(2400, 300);
        let (_, view) = DetectionView::new(&bytes, &limits, &settings).unwrap();
        for odd in [f32::NAN, f32::INFINITY, -1e30, 0.0] {
            let face = face(odd, odd, odd, 0.5);
            for (part, _) in view.parts(&bytes, &limits, &[face], &[CHIP], &settings) {
                assert!(part.picture.width_px() >= 1);
            }
        }
    }
}
