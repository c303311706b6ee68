//! Decides, before any work, what a request needs.

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

/// The plan of a request: versions, thresholds and deadline. Making it does no I/O; executing it needs no further
/// checks.
#[derive(Clone)]
pub(crate) struct Plan {
    /// The version that answers. Its pin keeps it and its dependencies loaded.
    pub(super) reader: Resolved,
    pub(super) stages: Stages,
    /// The call's deadline.
    pub(super) deadline: Option<Instant>,
    pub(super) priority: Priority,
    pub(super) arrived: Instant,
}

/// The stages of reading a photo.
#[derive(Clone)]
pub(super) enum Stages {
    /// The photo is decoded to a square, which a network reads.
    Photo { side_px: u32, min_side_px: u32 },
    /// Faces are detected, their quality is checked, and networks run on their chips.
    Faces(Box<FaceStages>),
}

/// The stages of reading faces.
#[derive(Clone)]
pub(super) struct FaceStages {
    pub(super) detector: VersionName,
    pub(super) pipeline: Arc<FacePipeline>,
    /// The space of the embedding, if one was requested.
    pub(super) space: Option<EmbeddingSpace>,
    /// The version's thresholds, overridden by the request's.
    pub(super) thresholds: QualityThresholds,
    pub(super) selection: FaceSelection,
    pub(super) max_faces: usize,
}

/// The versions of a plan.
pub(super) struct Versions {
    pub(super) reader: Resolved,
    /// The detector of a version that reads faces.
    pub(super) detector: Option<Arc<Version>>,
    /// The version of the embedding, if one was requested.
    pub(super) embedder: Option<Arc<Version>>,
}

impl Plan {
    /// Plans a request for these versions.
    ///
    /// # Errors
    /// When the version has no such head, reads no photos, or lacks the requested embedding; when a threshold is
    /// outside the configured bounds.
    pub(super) fn new(versions: Versions, wants: &Wants, config: &FacesConfig, call: &Call) -> Result<Self, AppError> {
        let Versions { reader, detector, embedder } = versions;
        check_heads(&reader.version, &wants.heads)?;
        let unsupported = |what: &str| AppError::UnsupportedByModel {
            version: reader.version.name.to_string(),
            what: what.to_owned(),
        };
        let stages = match &reader.version.reads {
            Reads::Finds(_) => {
                return Err(unsupported("only finds faces; use a version that reads them"));
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
                Stages::Faces(Box::new(FaceStages {
                    detector: detector.name.clone(),
                    pipeline: Arc::new(FacePipeline::new(settings.clone(), *chip, second)),
                    space: if wants.embedding { space.clone() } else { None },
                    thresholds: thresholds::effective(reader.version.thresholds.as_ref(), &wants.thresholds, config)?,
                    selection: wants.selection,
                    max_faces: config.max_faces,
                }))
            }
        };
        Ok(Self { reader, stages, deadline: call.deadline, priority: call.priority, arrived: call.arrived })
    }

    /// Returns the version that answers.
    pub(crate) fn version(&self) -> &Arc<Version> {
        &self.reader.version
    }
}

impl FaceStages {
    /// Returns the versions that read each face: the one that answers, then the one for the embedding, if requested.
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
