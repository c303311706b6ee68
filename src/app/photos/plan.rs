//! What a request will need, decided once and before any of its work.

use std::sync::Arc;
use std::time::Instant;

use super::Wants;
use crate::{
    app::{AppError, Call, models::Resolved, thresholds},
    config::FacesConfig,
    names::{EmbeddingSpace, VersionName},
    proto::v1::{FaceSelection, QualityThresholds},
    registry::{Reads, Version},
    serving::Priority,
    vision::FacePipeline,
};

/// The plan of a request: which versions answer, by which thresholds, until when. Making it does no work and asks
/// nothing; whoever carries it out need not check anything again.
#[derive(Clone)]
pub(crate) struct Plan {
    /// The version that answers, with the pin that keeps it and what it depends on loaded.
    pub(super) reader: Resolved,
    pub(super) stages: Stages,
    /// When the answer is worthless.
    pub(super) deadline: Option<Instant>,
    pub(super) priority: Priority,
    pub(super) arrived: Instant,
}

/// The stages that a photo goes through.
#[derive(Clone)]
pub(super) enum Stages {
    /// The photo is decoded to a square, and a network reads it.
    Photo { side_px: u32, min_side_px: u32 },
    /// Faces are found, cut out and judged, and networks read each.
    Faces(FaceStages),
}

/// The stages of a photo with faces.
#[derive(Clone)]
pub(super) struct FaceStages {
    pub(super) detector: VersionName,
    pub(super) pipeline: Arc<FacePipeline>,
    /// The space of the embedding that is wanted, too.
    pub(super) space: Option<EmbeddingSpace>,
    /// The version's thresholds, with those that the request named instead.
    pub(super) thresholds: QualityThresholds,
    pub(super) selection: FaceSelection,
    pub(super) max_faces: usize,
}

/// The versions of a plan.
pub(super) struct Versions {
    pub(super) reader: Resolved,
    /// The detector of a version that reads faces.
    pub(super) detector: Option<Arc<Version>>,
    /// The version whose embedding is wanted, too.
    pub(super) embedder: Option<Arc<Version>>,
}

impl Plan {
    /// Plans a request for these versions.
    ///
    /// # Errors
    /// When the version has no such head, reads no photos, or has no embedding that was wanted; when a threshold is out
    /// of the configured bounds.
    pub(super) fn new(versions: Versions, wants: &Wants, config: &FacesConfig, call: &Call) -> Result<Self, AppError> {
        let Versions { reader, detector, embedder } = versions;
        check_heads(&reader.version, &wants.heads)?;
        let unsupported = |what: &str| AppError::UnsupportedByModel {
            version: reader.version.name.to_string(),
            what: what.to_owned(),
        };
        let stages = match &reader.version.reads {
            Reads::Finds(_) => {
                return Err(unsupported("finds faces and answers nothing about them; ask a version that reads them"));
            }
            Reads::Photos { .. } if wants.embedding => {
                return Err(unsupported("reads whole photos and is paired with no embedding; enrol the photo instead"));
            }
            Reads::Photos { side_px, min_side_px, .. } => {
                Stages::Photo { side_px: *side_px, min_side_px: *min_side_px }
            }
            Reads::Faces { chip, space, .. } => {
                if wants.embedding && space.is_none() {
                    return Err(unsupported("is paired with no embedding"));
                }
                let detector = detector.ok_or_else(|| unsupported("has no detector"))?;
                let Reads::Finds(settings) = &detector.reads else {
                    return Err(unsupported(&format!("depends on {}, which finds no faces", detector.name)));
                };
                let second = match embedder.as_ref().map(|embedder| &embedder.reads) {
                    Some(Reads::Faces { chip, .. }) => Some(*chip),
                    Some(_) => return Err(unsupported("is paired with a version that reads no faces")),
                    None => None,
                };
                Stages::Faces(FaceStages {
                    detector: detector.name.clone(),
                    pipeline: Arc::new(FacePipeline::new(settings.clone(), *chip, second)),
                    space: if wants.embedding { space.clone() } else { None },
                    thresholds: thresholds::effective(reader.version.thresholds.as_ref(), &wants.thresholds, config)?,
                    selection: wants.selection,
                    max_faces: config.max_faces,
                })
            }
        };
        Ok(Self { reader, stages, deadline: call.deadline, priority: call.priority, arrived: call.arrived })
    }

    /// The version that answers.
    pub(crate) fn version(&self) -> &Arc<Version> {
        &self.reader.version
    }
}

impl FaceStages {
    /// The versions that read each face, in order: the one that answers, then the one whose embedding is wanted.
    pub(super) fn readers<'a>(&'a self, reader: &'a VersionName) -> impl Iterator<Item = &'a VersionName> {
        std::iter::once(reader).chain(self.space.as_ref().map(|space| &space.version))
    }
}

fn check_heads(version: &Version, heads: &[String]) -> Result<(), AppError> {
    let Some(unknown) = heads.iter().find(|h| version.heads.iter().all(|known| known.name != **h)) else {
        return Ok(());
    };
    let known: Vec<_> = version.heads.iter().map(|h| h.name.as_str()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(AppError::field("heads", format!("{} has no head {unknown:?}, it has {known}", version.name)))
}
