//! A photo through the pipeline of the version that reads it.
//!
//! A version reads whole photos, or faces. A whole photo is decoded on the pixel pool and goes through the network; of
//! one with faces, see `faces`. The future carries the deadline and the cancellation: dropped or expired work never
//! reaches the device.

mod faces;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{AppError, Call, Models};
use crate::{
    config::FacesConfig,
    names::{ModelRef, VersionName},
    proto::{
        store::VersionRecord,
        v1::{self, AbstentionReason, FaceSelection, QualityThresholds},
    },
    serving::{ImageOutput, Input, PixelPool, ServeError, ServingPool},
    vision::{DetectedFace, PhotoNote, decode_square},
};

/// Reads photos with the registry's versions.
#[derive(Clone)]
pub struct Photos {
    models: Models,
    pixels: PixelPool,
    serving: ServingPool,
    faces: Arc<FacesConfig>,
    /// Room for the faces of photos that have several: many such photos at once would have each other's faces refused,
    /// and each whole photo with them, after most of the work is done.
    crowds: Arc<Semaphore>,
    /// How many faces that is.
    n_crowd_places: u32,
}

/// What a caller wants of a photo's faces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// Which faces.
    pub selection: FaceSelection,
    /// Instead of the version's own.
    pub thresholds: QualityThresholds,
    /// Whether the embedding that the version is paired with.
    pub embedding: bool,
}

/// What became of a photo.
pub struct Read {
    /// The version that read it.
    pub version: VersionName,
    /// Its manifest.
    pub manifest: Arc<VersionRecord>,
    /// The network's answer, or why there is none.
    pub outcome: Outcome,
    /// What was odd about the photo's file.
    pub notes: Vec<PhotoNote>,
    /// Where the time went.
    pub timing: v1::Timing,
}

/// What the pipeline says.
pub enum Outcome {
    /// What the network says of the whole photo.
    Answered(ImageOutput),
    /// The photo is smaller than the version reads.
    TooSmall {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The least side that the version reads.
        min_side_px: u32,
    },
    /// What it says of the faces.
    Faces(FacesRead),
}

/// The faces of a photo.
pub struct FacesRead {
    /// How many were found.
    pub n_found: usize,
    /// Those that were selected, the largest first; empty when none was found, or several where one was asked for.
    pub faces: Vec<FaceRead>,
}

/// A face of a photo.
pub struct FaceRead {
    /// Where it is, in pixels of the photo as it was sent.
    pub face: DetectedFace,
    /// Whether it is upside down in the photo and was rotated to be read.
    pub upside_down: bool,
    /// How fit its picture is, by the signal's name.
    pub quality: BTreeMap<String, f64>,
    /// Why it is not answered; empty when it is.
    pub reasons: Vec<AbstentionReason>,
    /// What the network says of it; absent when it is not answered.
    pub output: Option<ImageOutput>,
    /// Its embedding in the space that the version is paired with, when it was asked for and the face is answered.
    pub embedding: Option<(String, Vec<f32>)>,
}

impl FacesRead {
    /// Why no face was selected; empty when one was.
    #[must_use]
    pub fn reasons(&self) -> Vec<AbstentionReason> {
        match (self.faces.is_empty(), self.n_found) {
            (false, _) => Vec::new(),
            (true, 0) => vec![AbstentionReason::NoFace],
            (true, _) => vec![AbstentionReason::SeveralFaces],
        }
    }
}

impl Photos {
    /// Reads photos with `models` on `serving`, whose queues have room for `queue_capacity` pictures, with the work on
    /// pixels done by `pixels`.
    #[must_use]
    pub(super) fn new(
        models: Models,
        pixels: PixelPool,
        serving: ServingPool,
        faces: FacesConfig,
        queue_capacity: usize,
    ) -> Self {
        // Each face may wait for two networks, and half of the room stays for the callers of single faces.
        let n_crowd_places = u32::try_from(queue_capacity / 4).unwrap_or(u32::MAX).clamp(1, 1 << 16);
        let crowds = Arc::new(Semaphore::new(n_crowd_places as usize));
        Self { models, pixels, serving, faces: Arc::new(faces), crowds, n_crowd_places }
    }

    /// The manifest of the version that `reference` means now; none means the default model's champion.
    ///
    /// # Errors
    /// When there is no such version.
    pub(super) async fn manifest(&self, reference: Option<&ModelRef>) -> Result<Arc<VersionRecord>, AppError> {
        self.models.manifest(&self.models.resolve(reference)?).await
    }

    /// Reads one photo with the version that `reference` means; none means the default model's champion.
    ///
    /// # Errors
    /// When there is no such version, the bytes are no readable image, a threshold is out of bounds, or there is no room
    /// or time for it.
    pub async fn read(
        &self,
        call: &Call,
        reference: Option<&ModelRef>,
        image: Bytes,
        wants: &Wants,
    ) -> Result<Read, AppError> {
        if image.is_empty() {
            return Err(AppError::field("image", "must be the bytes of a JPEG, PNG or WebP file; it is empty"));
        }
        // A version may be retired between the look-up and its queue; then the reference means another one, or the
        // caller named this very one and it is loaded again. Once more is enough: a swap retires a version and those
        // that only it worked with.
        match self.read_once(call, reference, image.clone(), wants).await {
            Err(AppError::Serve(ServeError::NotLoaded { .. })) => self.read_once(call, reference, image, wants).await,
            result => result,
        }
    }

    async fn read_once(
        &self,
        call: &Call,
        reference: Option<&ModelRef>,
        image: Bytes,
        wants: &Wants,
    ) -> Result<Read, AppError> {
        let version = self.models.resolve(reference)?;
        let manifest = self.models.ready(&version).await?;
        let preprocessing = manifest
            .preprocessing
            .as_ref()
            .ok_or_else(|| AppError::Internal(format!("{version} has no preprocessing")))?;
        if preprocessing.detection.is_some() {
            let what = "finds faces and answers nothing about them; ask a version that reads them".to_owned();
            return Err(AppError::UnsupportedByModel { version: version.to_string(), what });
        }
        let (outcome, notes, timing) = match &preprocessing.face_chip {
            Some(chip) => {
                let (faces, notes, timing) = self.read_faces(call, &version, &manifest, chip, image, wants).await?;
                (Outcome::Faces(faces), notes, timing)
            }
            None if wants.embedding => {
                let what = "reads whole photos and is paired with no embedding; enrol the photo instead".to_owned();
                return Err(AppError::UnsupportedByModel { version: version.to_string(), what });
            }
            None => {
                let (side_px, min_side_px) = (preprocessing.image_size_px, preprocessing.min_side_px);
                self.read_whole(call, &version, side_px, min_side_px, image).await?
            }
        };
        let timing = v1::Timing { total: proto_duration(call.arrived.elapsed()), ..timing };
        Ok(Read { version, manifest, outcome, notes, timing })
    }

    async fn read_whole(
        &self,
        call: &Call,
        version: &VersionName,
        side_px: u32,
        min_side_px: u32,
        image: Bytes,
    ) -> Result<(Outcome, Vec<PhotoNote>, v1::Timing), AppError> {
        let decoding = Instant::now();
        let work = move |limits: &_| {
            let photo = decode_square(&image, limits, side_px)?;
            Ok((Arc::new(Input::Square(photo.pixels)), photo.full_width_px, photo.full_height_px, photo.notes))
        };
        let (input, width, height, notes) = self.pixels.run(call.deadline, work).await?;
        let timing = v1::Timing { decode: proto_duration(decoding.elapsed()), ..v1::Timing::default() };
        if width.min(height) < min_side_px {
            return Ok((Outcome::TooSmall { width, height, min_side_px }, notes, timing));
        }
        let served = self.serving.run(&version.to_string(), input, call.deadline).await?;
        let timing = v1::Timing {
            queue: proto_duration(served.queue),
            inference: proto_duration(served.inference),
            batch_size: i32::try_from(served.batch_size).unwrap_or(i32::MAX),
            ..timing
        };
        Ok((Outcome::Answered(served.output), notes, timing))
    }
}

/// Notes in their wire form.
pub(super) fn notes_to_proto(notes: &[PhotoNote]) -> Vec<i32> {
    let in_wire_form = |note: &PhotoNote| match note {
        PhotoNote::EndMissing => v1::PhotoNote::EndMissing,
        PhotoNote::ChunkMissing => v1::PhotoNote::ChunkMissing,
        PhotoNote::ColoursUnsure => v1::PhotoNote::ColoursUnsure,
    };
    notes.iter().map(|note| in_wire_form(note).into()).collect()
}

/// A duration in its wire form; absent beyond what that can say.
pub(crate) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
