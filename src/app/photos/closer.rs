//! Looking closer: faces are looked for in a small view of a photo, and what was found there may not be enough.
//!
//! A face of which a chip shows more than the view has is read again from more of the photo's pixels: the part around it
//! is decoded at the size that the chip needs, and the detector looks at it anew, so that box and points are as exact as
//! if the part had been sent alone. And a face that the detector is less sure of than of most is looked at turned by
//! half, and read so if the detector is surer then: people upside down are found now and then, and what networks say of
//! them means nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::Photos;
use crate::{
    app::{AppError, CallContext},
    serving::{Input, Served},
    vision::{
        BoundingBox, CascadeSettings, ChipSettings, DecodeLimits, DecodedImage, DetectedFace, ImageError, PhotoNote,
        Pyramid, Wanted, decode, pixels_shown,
    },
};

/// A detector this sure of a face saw it upright. Of those in upright photos that are answered it is less sure of 5 in
/// 100, of those upside down but of 1 in 300 not.
const SURE: f32 = 0.9995;

/// Pixels of its picture, along a line, that a pixel of the finest chip must show. At 1 nothing is enlarged, but a reduced
/// reading still shows: ages lie as much as 0.2 years further from those of the same face alone than at 1.5, and at 2 no
/// nearer.
const ENOUGH: f64 = 1.5;

/// The least overlap, intersection over union, of a face with where it was seen before. In a view of an eighth the box of
/// a small face is good to some pixels only.
const SAME_FACE: f32 = 0.3;

/// The same, with where it was seen upside down: what was taken for a face may have been half of it and a collar.
const SAME_TURNED_FACE: f32 = 0.05;

/// The side of the part that is read again, in sides of the face's box: room for every chip, however the head is tilted.
const PART_SIDES: f32 = 4.0;

/// The smallest face that is looked for in such a part, in sides of the expected box.
const LEAST_FACE: f64 = 0.5;

/// Pixels of a decoded photo up to which it is kept until its faces are cut out; more are decoded again when needed.
const MAX_KEPT_PIXELS: u64 = 1536 * 1536;

/// A photo in which faces were looked for.
pub(super) struct Looked {
    /// As it was looked at.
    photo: Arc<DecodedImage>,
    /// As it was decoded, where that is more and not too much to keep.
    decoded: Option<Arc<DecodedImage>>,
    /// Sides of the photo as it was sent, in pixels.
    sent: (f32, f32),
}

/// A face and the picture that it is cut out of.
pub(super) struct Close {
    pub(super) picture: Arc<DecodedImage>,
    /// In pixels of the picture.
    pub(super) face: DetectedFace,
    /// In pixels of the photo as it was sent.
    pub(super) sent: DetectedFace,
    pub(super) turned: bool,
    /// Pixels of the photo as it was sent that stand in one of the picture: all that the file has are in the chip, or
    /// only those that were read count.
    pub(super) scale: f64,
}

/// A part of a photo, to be looked at anew for one face.
struct View {
    face_idx: usize,
    input: Arc<Input>,
    picture: Arc<DecodedImage>,
    /// Where the face was seen before, in pixels of the picture.
    expected: BoundingBox,
    is_turned: bool,
    /// From the picture's pixels to those of the photo as it was sent: times these, then from there on.
    to_sent: ((f32, f32), (f32, f32)),
}

impl Looked {
    /// Decodes a photo and lays it out to be looked at.
    pub(super) fn at(
        image: &[u8],
        limits: &DecodeLimits,
        settings: &CascadeSettings,
    ) -> Result<(Pyramid, Self, Vec<PhotoNote>), ImageError> {
        // Three quarters are enough to look at; a photo that is a little larger then need not be decoded whole.
        let decoded = Arc::new(decode(image, limits, Wanted::LongSide(settings.max_side_px / 4 * 3))?);
        let pyramid = Pyramid::new(Arc::clone(&decoded), settings);
        let photo = Arc::clone(pyramid.photo());
        let notes = decoded.notes().to_vec();
        let sent = (decoded.full_width_px() as f32, decoded.full_height_px() as f32);
        let n_pixels = u64::from(decoded.width_px()) * u64::from(decoded.height_px());
        let is_kept = decoded.width_px() > photo.width_px() && n_pixels <= MAX_KEPT_PIXELS;
        Ok((pyramid, Self { photo, decoded: is_kept.then_some(decoded), sent }, notes))
    }

    /// Pixels of the photo as it was sent for each of `picture`, which shows all of it.
    fn sent_per(&self, picture: &DecodedImage) -> (f32, f32) {
        (self.sent.0 / picture.width_px() as f32, self.sent.1 / picture.height_px() as f32)
    }

    /// How many times as long a side the view must have for the face to be read from enough pixels; 1 if it has them.
    fn enlargement(&self, face: &DetectedFace, chips: &[ChipSettings]) -> f64 {
        let (x, y) = self.sent_per(&self.photo);
        (ENOUGH / shown(face, chips)).clamp(1.0, f64::from(x.max(y)).max(1.0))
    }

    /// A face as it was found.
    fn unchanged(&self, face: DetectedFace, chips: &[ChipSettings]) -> Close {
        let (x, y) = self.sent_per(&self.photo);
        Close::new(Arc::clone(&self.photo), face, face.scaled(x, y), false, x.min(y), chips)
    }

    /// The photo with its long side at least that long, or as near to it as the limits allow.
    fn larger(&self, image: &[u8], limits: &DecodeLimits, long_side_px: u32) -> Result<Arc<DecodedImage>, ImageError> {
        let long = |picture: &DecodedImage| picture.width_px().max(picture.height_px());
        let kept = self.decoded.as_ref().unwrap_or(&self.photo);
        if long(kept) >= long_side_px {
            return Ok(Arc::clone(kept));
        }
        match decode(image, limits, Wanted::LongSide(long_side_px)) {
            Ok(larger) => Ok(Arc::new(larger)),
            // It was decoded before, smaller: only its memory is over the limit.
            Err(ImageError::TooLarge { .. }) => Ok(Arc::clone(kept)),
            Err(error) => Err(error),
        }
    }

    /// The part of `source`, which shows all of the photo, around a face.
    fn view(
        &self,
        face_idx: usize,
        face: &DetectedFace,
        source: &DecodedImage,
        is_turned: bool,
        settings: &CascadeSettings,
    ) -> View {
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
        let part = source.part(from_x, from_y, width, height);
        let part = if is_turned { part.turned() } else { part };
        let shift = (from_x as f32, from_y as f32);
        let side = f64::from(expected.bounds.width().min(expected.bounds.height()));
        let settings = CascadeSettings { min_face_px: (side * LEAST_FACE).max(settings.min_face_px), ..*settings };
        let pyramid = Pyramid::new(part, &settings);
        let picture = Arc::clone(pyramid.photo());
        let (px, py) = (width as f32 / picture.width_px() as f32, height as f32 / picture.height_px() as f32);
        let expected = expected.shifted(-shift.0, -shift.1).scaled(1.0 / px, 1.0 / py);
        let expected = if is_turned { expected.turned(picture.width_px(), picture.height_px()) } else { expected };
        View {
            face_idx,
            input: Arc::new(Input::Photo(pyramid)),
            picture,
            expected: expected.bounds,
            is_turned,
            to_sent: ((px * to_sent_x, py * to_sent_y), (shift.0 * to_sent_x, shift.1 * to_sent_y)),
        }
    }
}

impl Close {
    fn new(
        picture: Arc<DecodedImage>,
        face: DetectedFace,
        sent: DetectedFace,
        turned: bool,
        sent_per_px: f32,
        chips: &[ChipSettings],
    ) -> Self {
        let scale = if shown(&face, chips) < ENOUGH { 1.0 } else { sent_per_px.into() };
        Self { picture, face, sent, turned, scale }
    }
}

impl View {
    /// The face that was looked for, if it is among those that were found.
    fn find(&self, faces: &[DetectedFace]) -> Option<DetectedFace> {
        let least = if self.is_turned { SAME_TURNED_FACE } else { SAME_FACE };
        let overlap = |face: &DetectedFace| face.bounds.iou(&self.expected);
        let best = faces.iter().max_by(|a, b| overlap(a).total_cmp(&overlap(b)))?;
        (overlap(best) >= least).then_some(*best)
    }

    fn close(&self, face: DetectedFace, chips: &[ChipSettings]) -> Close {
        let upright =
            if self.is_turned { face.turned(self.picture.width_px(), self.picture.height_px()) } else { face };
        let ((x, y), from) = self.to_sent;
        let sent = upright.scaled(x, y).shifted(from.0, from.1);
        Close::new(Arc::clone(&self.picture), face, sent, self.is_turned, x.min(y), chips)
    }
}

/// What faces are looked at closer with.
pub(super) struct Closer<'a> {
    pub(super) detector: &'a str,
    pub(super) settings: CascadeSettings,
    /// What the readers' chips look like.
    pub(super) chips: &'a [ChipSettings],
}

impl Photos {
    /// Each face with the picture that it is to be cut out of.
    pub(super) async fn look_closer(
        &self,
        call: &CallContext,
        image: Bytes,
        looked: Looked,
        faces: Vec<DetectedFace>,
        with: &Closer<'_>,
    ) -> Result<Vec<Close>, AppError> {
        let enlargements: Vec<f64> = faces.iter().map(|face| looked.enlargement(face, with.chips)).collect();
        let is_enough = |(face, enlargement): (&DetectedFace, &f64)| *enlargement <= 1.0 && face.score >= SURE;
        if faces.iter().zip(&enlargements).all(is_enough) {
            return Ok(faces.into_iter().map(|face| looked.unchanged(face, with.chips)).collect());
        }
        let settings = with.settings;
        let work = move |limits: &_| {
            let most = enlargements.iter().copied().fold(1.0, f64::max);
            let long_side = f64::from(looked.photo.width_px().max(looked.photo.height_px()));
            let source = looked.larger(&image, limits, (long_side * most).round() as u32)?;
            let mut views = Vec::new();
            for (face_idx, (face, enlargement)) in faces.iter().zip(enlargements).enumerate() {
                if enlargement > 1.0 {
                    views.push(looked.view(face_idx, face, &source, false, &settings));
                }
                if face.score < SURE {
                    views.push(looked.view(face_idx, face, &source, true, &settings));
                }
            }
            Ok((views, looked, faces))
        };
        let (views, looked, faces) = self.pixels.run(call.deadline, work).await?;
        let inputs: Vec<_> = views.iter().map(|view| Arc::clone(&view.input)).collect();
        let looks = inputs.into_iter().map(|input| self.serving.run(with.detector, input, call.deadline));
        let found: Vec<Served> = stream::iter(looks).buffered(self.n_crowd_places as usize).try_collect().await?;
        let mut close: Vec<Close> = faces.into_iter().map(|face| looked.unchanged(face, with.chips)).collect();
        for (view, found) in views.iter().zip(&found) {
            let before = &mut close[view.face_idx];
            let again = view.find(&found.output.faces);
            // The view of the face as it is comes first.
            if let Some(face) = again.filter(|face| !view.is_turned || face.score > before.face.score) {
                *before = view.close(face, with.chips);
            }
        }
        Ok(close)
    }
}

/// Pixels of its picture that a pixel of the finest chip shows.
fn shown(face: &DetectedFace, chips: &[ChipSettings]) -> f64 {
    chips.iter().map(|chip| pixels_shown(&face.alignment, chip)).fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE)
}
