//! Reads photos: runs each through the pipeline of its version.
//!
//! A request is planned first ([`Plan`]): which version answers, what it depends on, which thresholds apply. The plan
//! then reads the photo. Some versions read whole photos: the pixel pool decodes the photo, and the network runs on it.
//! Others read faces: see `faces`. The future carries deadline and cancellation: dropped or expired work never reaches
//! the device. The decisions are returned with the answer ([`Facts`]).

mod faces;
mod facts;
mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use self::plan::{Stages, Versions};
pub(crate) use self::{
    facts::{Facts, StageTimes, proto_duration},
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
    /// Limits the faces in progress from photos with several. Otherwise many such photos would make each other's faces
    /// overflow the queues, and each whole photo would fail after most of its work was done.
    crowds: Arc<Semaphore>,
    /// The number of permits in `crowds`.
    n_crowd_places: u32,
}

/// A caller's options for reading a photo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    /// The heads to answer; empty means all.
    pub heads: Vec<String>,
    /// The faces to read.
    pub selection: FaceSelection,
    /// Overrides of the version's thresholds.
    pub thresholds: QualityThresholds,
    /// Also return the embedding of the version that this one is paired with.
    pub embedding: bool,
}

/// A photo that was read.
pub(crate) struct Reading {
    /// The network's answer, or why there is none.
    pub(crate) outcome: Outcome,
    /// Notes on the photo's file.
    pub(crate) notes: Vec<PhotoNote>,
    /// The decisions about the photo.
    pub(crate) facts: Facts,
}

/// The result of reading a photo.
pub(crate) enum Outcome {
    /// The network answered for the whole photo.
    Answered(ImageOutput),
    /// The photo is too small for the version.
    TooSmall {
        /// The photo's width in pixels.
        width: u32,
        /// The photo's height in pixels.
        height: u32,
        /// The smallest side that the version reads, in pixels.
        min_side_px: u32,
    },
    /// The version reads faces; these were found.
    Faces(FacesRead),
}

/// The faces of a photo.
pub(crate) struct FacesRead {
    /// The number of faces found.
    pub(crate) n_found: usize,
    /// The selected faces, the largest first. Empty if none was found, or several where a single one was requested.
    pub(crate) faces: Vec<FaceRead>,
}

/// A face of a photo.
pub(crate) struct FaceRead {
    /// The face's position, in pixels of the photo as sent.
    pub(crate) face: DetectedFace,
    /// True if the face is upside down in the photo and was rotated before reading.
    pub(crate) upside_down: bool,
    /// The quality signals, by name.
    pub(crate) quality: BTreeMap<String, f64>,
    /// The reasons to abstain; empty if the face is answered.
    pub(crate) reasons: Vec<AbstentionReason>,
    /// The network's output; `None` if the face is not answered.
    pub(crate) output: Option<ImageOutput>,
    /// The embedding in the paired space, if requested and the face is answered.
    pub(crate) embedding: Option<(EmbeddingSpace, Vec<f32>)>,
}

impl FacesRead {
    /// Returns why no face was selected; empty if one was.
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
    /// Creates a reader of photos. `queue_capacity` is the length of the queues of `serving`, in images.
    #[must_use]
    pub(crate) fn new(
        models: Models,
        pixels: PixelPool,
        serving: ServingPool,
        faces: FacesConfig,
        queue_capacity: usize,
    ) -> Self {
        // Each face may wait for two networks. Half of the queue stays free for callers with a single face.
        let n_crowd_places = u32::try_from(queue_capacity / 4).unwrap_or(u32::MAX).clamp(1, 1 << 16);
        let crowds = Arc::new(Semaphore::new(n_crowd_places as usize));
        Self { models, pixels, serving, faces: Arc::new(faces), crowds, n_crowd_places }
    }

    /// Plans a request: resolves the reference (`None`: the default model's champion), and loads the versions of all
    /// stages if necessary.
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
        // They were loaded with the reader, but may have failed since.
        for version in &needed {
            self.models.ensure_loaded(version).await?;
        }
        Ok(plan)
    }

    /// Reads a photo according to a plan.
    ///
    /// # Errors
    /// When the bytes cannot be decoded, or a limit or the deadline is reached.
    pub(super) async fn read(&self, plan: &Plan, photo: Bytes) -> Result<Reading, AppError> {
        check_photo("image", &photo)?;
        let version = plan.version().name.clone();
        let facts = Facts {
            version,
            detector: None,
            embedder: None,
            thresholds: None,
            took: StageTimes::default(),
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
        facts.took = StageTimes {
            queue: Some(served.queue),
            inference: Some(served.inference),
            batch_size: served.batch_size,
            ..facts.took
        };
        Ok((Outcome::Answered(served.output), notes, facts))
    }
}

/// Refuses an empty photo early; `field` is its request field.
pub(crate) fn check_photo(field: &'static str, photo: &[u8]) -> Result<(), AppError> {
    if photo.is_empty() {
        return Err(AppError::field(field, "must be the bytes of a JPEG, PNG or WebP file; it is empty"));
    }
    Ok(())
}

/// Converts notes to their wire form.
pub(super) fn notes_to_proto(notes: &[PhotoNote]) -> Vec<i32> {
    let in_wire_form = |note: &PhotoNote| match note {
        PhotoNote::EndMissing => v1::PhotoNote::EndMissing,
        PhotoNote::ChunkMissing => v1::PhotoNote::ChunkMissing,
        PhotoNote::ColoursUnsure => v1::PhotoNote::ColoursUnsure,
    };
    notes.iter().map(|note| in_wire_form(note).into()).collect()
}
