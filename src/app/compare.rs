//! CompareFaces: do two photos show the same person? Stores nothing.

use bytes::Bytes;
use futures::future::try_join;

use super::{
    App, AppError, Call,
    faces::{embedding_of, single_face},
    photos::{FacesRead, Outcome, Reading, check_photo, notes_to_proto, proto_duration},
    predict::found_face,
};
use crate::{
    names::{EmbeddingSpace, ModelRef, SpaceRef},
    proto::v1::{self, AbstentionReason, FaceReading, FaceSelection},
    similarity::{Embedding, Score, identity_evidence},
};

/// Two photos to compare.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// The first photo.
    pub first: Bytes,
    /// The second photo.
    pub second: Bytes,
    /// The embedding space, named as for a collection.
    pub space: SpaceRef,
    /// Which face of each photo to compare.
    pub selection: FaceSelection,
}

impl App {
    /// Compares the faces of two photos.
    ///
    /// # Errors
    /// When there is no such space, a photo cannot be decoded, or a limit or the deadline is reached.
    pub(crate) async fn compare_faces(
        &self,
        call: &Call,
        request: Comparison,
    ) -> Result<v1::CompareFacesResponse, AppError> {
        for (field, image) in [("first_image", &request.first), ("second_image", &request.second)] {
            check_photo(field, image)?;
        }
        let wants = single_face("face_selection", request.selection)?;
        let space = self.models.resolve_space(&request.space).await?;
        let plan = self.photos.plan(call, Some(&ModelRef::Version(space.version.clone())), &wants).await?;
        let read = async |field, image| self.photos.read(&plan, image).await.map_err(|error| error.of_image(field));
        let (first, second) =
            try_join(read("first_image", request.first), read("second_image", request.second)).await?;
        let mut answer = v1::CompareFacesResponse {
            embedding_space: space.to_string(),
            first_face: face(&first),
            second_face: face(&second),
            first_photo_notes: notes_to_proto(&first.notes),
            second_photo_notes: notes_to_proto(&second.notes),
            timing: Some(v1::Timing { total: proto_duration(call.arrived.elapsed()), ..first.facts.took.to_proto() }),
            ..v1::CompareFacesResponse::default()
        };
        let mut reasons: Vec<AbstentionReason> = [&first, &second].into_iter().flat_map(reasons).collect();
        reasons.sort_unstable();
        reasons.dedup();
        if !reasons.is_empty() {
            answer.abstained = true;
            answer.abstention_reasons = reasons.into_iter().map(Into::into).collect();
            return Ok(answer);
        }
        let score = Score::of(
            embedding("first_image", first, &space)?.values(),
            embedding("second_image", second, &space)?.values(),
        );
        answer.score = Some(score.value());
        answer.identity =
            plan.version().identity.as_ref().map(|calibration| identity_evidence(calibration, score.value()));
        Ok(answer)
    }
}

fn embedding(field: &'static str, read: Reading, space: &EmbeddingSpace) -> Result<Embedding, AppError> {
    let values = embedding_of(field, read, space)?;
    let dimensions = values.len();
    Ok(Embedding::new(field, values, dimensions)?)
}

fn reasons(read: &Reading) -> Vec<AbstentionReason> {
    match &read.outcome {
        Outcome::Answered(_) => Vec::new(),
        Outcome::TooSmall { .. } => vec![AbstentionReason::FaceTooSmall],
        Outcome::Faces(found) => match found.faces.first() {
            Some(face) => face.reasons.clone(),
            None => found.reasons(),
        },
    }
}

fn face(read: &Reading) -> Option<FaceReading> {
    match &read.outcome {
        Outcome::Faces(FacesRead { faces, .. }) => faces.first().map(found_face),
        Outcome::Answered(_) | Outcome::TooSmall { .. } => None,
    }
}
