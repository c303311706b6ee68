//! A photo through the pipeline of the version that reads it.
//!
//! A request is planned first ([`Plan`]): which version answers, what that depends on, which thresholds hold. Then the
//! plan reads the photo. A version reads whole photos, or faces: a whole photo is decoded on the pixel pool and goes
//! through the network; of one with faces, see `faces`. The future carries the deadline and the cancellation: dropped or
//! expired work never reaches the device. What was decided comes out with the answer ([`Facts`]).

mod faces;
mod facts;
mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use self::plan::{Stages, Versions};
pub(crate) use self::{
    facts::{Facts, Took, proto_duration},
    plan::Plan,
};
use super::{AppError, Call, Models};
use crate::{
    config::FacesConfig,
    names::{EmbeddingSpace, ModelRef},
    proto::v1::{self, AbstentionReason, FaceSelection, QualityThresholds},
    registry::Reads,
    serving::{ImageOutput, Input, PixelPool, ServingPool},
    vision::{DetectedFace, PhotoNote, decode_square},
};

/// Reads photos with the registry's versions.
#[derive(Clone)]
pub(crate) struct Photos {
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

/// What a caller wants of a photo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    /// The heads that are to be answered; empty: all.
    pub heads: Vec<String>,
    /// The faces that are to be read.
    pub selection: FaceSelection,
    /// Thresholds instead of the version's own.
    pub thresholds: QualityThresholds,
    /// Also return the embedding of the version that this one is paired with.
    pub embedding: bool,
}

/// A photo that was read.
pub(crate) struct Reading {
    /// The network's answer, or why there is none.
    pub(crate) outcome: Outcome,
    /// What was odd about the photo's file.
    pub(crate) notes: Vec<PhotoNote>,
    /// What was decided.
    pub(crate) facts: Facts,
}

/// What became of a photo.
pub(crate) enum Outcome {
    /// The network answered for the whole photo.
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
    /// Faces were looked for.
    Faces(FacesRead),
}

/// The faces of a photo.
pub(crate) struct FacesRead {
    /// How many were found.
    pub(crate) n_found: usize,
    /// Those that were selected, the largest first; empty when none was found, or several where one was asked for.
    pub(crate) faces: Vec<FaceRead>,
}

/// A face of a photo.
pub(crate) struct FaceRead {
    /// Where it is, in pixels of the photo as it was sent.
    pub(crate) face: DetectedFace,
    /// Whether it is upside down in the photo and was rotated to be read.
    pub(crate) upside_down: bool,
    /// How fit its picture is, by the signal's name.
    pub(crate) quality: BTreeMap<String, f64>,
    /// Why it is not answered; empty when it is.
    pub(crate) reasons: Vec<AbstentionReason>,
    /// What the network says of it; absent when it is not answered.
    pub(crate) output: Option<ImageOutput>,
    /// Its embedding in the space that the version is paired with, when it was wanted and the face is answered.
    pub(crate) embedding: Option<(EmbeddingSpace, Vec<f32>)>,
}

impl FacesRead {
    /// Why no face was selected; empty when one was.
    #[must_use]
    pub(crate) fn reasons(&self) -> Vec<AbstentionReason> {
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
    pub(crate) fn new(
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

    /// Plans a request: resolves the reference (`None`: the default model's champion), and loads the versions of all
    /// stages if they are not loaded.
    ///
    /// # Errors
    /// When there is no such version or head, a threshold is out of bounds, or a version cannot be loaded.
    pub(crate) async fn plan(
        &self,
        call: &Call,
        reference: Option<&ModelRef>,
        wants: &Wants,
    ) -> Result<Plan, AppError> {
        let reader = self.models.hold(reference).await?;
        let (detector, embedder) = match &reader.version.reads {
            Reads::Faces { detector, space, .. } => {
                let embedder = match space.as_ref().filter(|_| wants.embedding) {
                    Some(space) => Some(self.models.version(&space.version).await?),
                    None => None,
                };
                (Some(self.models.version(detector).await?), embedder)
            }
            Reads::Photos { .. } | Reads::Finds(_) => (None, None),
        };
        let needed: Vec<_> = [&detector, &embedder].into_iter().flatten().map(|version| version.name.clone()).collect();
        let plan = Plan::new(Versions { reader, detector, embedder }, wants, &self.faces, call)?;
        self.models.ensure_loaded(&plan.version().name).await?;
        // Loaded with the reader, but they may have failed since.
        for version in &needed {
            self.models.ensure_loaded(version).await?;
        }
        Ok(plan)
    }

    /// Reads one photo as planned.
    ///
    /// # Errors
    /// When the bytes are no readable image, or there is no room or time for it.
    pub(super) async fn read(&self, plan: &Plan, photo: Bytes) -> Result<Reading, AppError> {
        check_photo("image", &photo)?;
        let version = plan.version().name.clone();
        let facts = Facts {
            version,
            detector: None,
            embedder: None,
            thresholds: None,
            took: Took::default(),
            photo: photo.clone(),
        };
        let (outcome, notes, mut facts) = match &plan.stages {
            Stages::Photo { side_px, min_side_px } => {
                self.read_whole(plan, *side_px, *min_side_px, photo, facts).await?
            }
            Stages::Faces(stages) => {
                let facts = Facts {
                    detector: Some(stages.detector.clone()),
                    embedder: stages.space.as_ref().map(|space| space.version.clone()),
                    thresholds: Some(stages.thresholds),
                    ..facts
                };
                self.read_faces(plan, stages, photo, facts).await?
            }
        };
        facts.took.total = plan.arrived.elapsed();
        facts.log();
        Ok(Reading { outcome, notes, facts })
    }

    async fn read_whole(
        &self,
        plan: &Plan,
        side_px: u32,
        min_side_px: u32,
        photo: Bytes,
        mut facts: Facts,
    ) -> Result<(Outcome, Vec<PhotoNote>, Facts), AppError> {
        let decoding = Instant::now();
        let work = move |limits: &_| {
            let photo = decode_square(&photo, limits, side_px)?;
            Ok((Arc::new(Input::Square(photo.pixels)), photo.full_width_px, photo.full_height_px, photo.notes))
        };
        let (input, width, height, notes) = self.pixels.run(plan.deadline, work).await?;
        facts.took.decode = Some(decoding.elapsed());
        if width.min(height) < min_side_px {
            return Ok((Outcome::TooSmall { width, height, min_side_px }, notes, facts));
        }
        let served = self.serving.run(&facts.version, input, plan.deadline, plan.priority).await?;
        facts.took = Took {
            queue: Some(served.queue),
            inference: Some(served.inference),
            batch_size: served.batch_size,
            ..facts.took
        };
        Ok((Outcome::Answered(served.output), notes, facts))
    }
}

/// Refuses a photo without bytes, before anything is done for it; `field` is where it stands in the request.
pub(crate) fn check_photo(field: &'static str, photo: &[u8]) -> Result<(), AppError> {
    if photo.is_empty() {
        return Err(AppError::field(field, "must be the bytes of a JPEG, PNG or WebP file; it is empty"));
    }
    Ok(())
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
