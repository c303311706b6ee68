//! Predict: turns a photo into typed predictions with intervals.

use bytes::Bytes;

use super::{
    AppError, Call, Photos, Wants,
    photos::{FaceRead, Outcome, check_photo, notes_to_proto},
    predictions::predictions,
};
use crate::{
    names::ModelRef,
    proto::v1::{self, FaceReading, Prediction},
    registry::Version,
    vision::Point,
};

/// Predicts from one photo with the version that `reference` means (`None`: the default model's champion), or abstains
/// with reasons.
///
/// # Errors
/// When there is no such version or head, the bytes cannot be decoded, a threshold is out of bounds, or a limit or the
/// deadline is reached.
pub(crate) async fn predict(
    call: &Call,
    photos: &Photos,
    reference: Option<&ModelRef>,
    image: Bytes,
    wants: &Wants,
) -> Result<v1::PredictResponse, AppError> {
    check_photo("image", &image)?;
    let plan = photos.plan(call, reference, wants).await?;
    let read = photos.read(&plan, image).await?;
    let answer = v1::PredictResponse {
        model_version: read.facts.version.to_string(),
        timing: Some(read.facts.took.to_proto()),
        photo_notes: notes_to_proto(&read.notes),
        ..v1::PredictResponse::default()
    };
    let abstain = |reasons: Vec<v1::AbstentionReason>| reasons.into_iter().map(Into::into).collect::<Vec<i32>>();
    let (version, heads) = (plan.version(), wants.heads.as_slice());
    let answer = match &read.outcome {
        Outcome::Answered(output) => {
            let predictions = wanted(predictions(version, output)?, heads);
            v1::PredictResponse { predictions, ..answer }
        }
        Outcome::TooSmall { .. } => {
            let abstention_reasons = abstain(vec![v1::AbstentionReason::FaceTooSmall]);
            v1::PredictResponse { abstained: true, abstention_reasons, ..answer }
        }
        Outcome::Faces(found) => {
            let faces = found.faces.iter().map(|face| reading(version, face, heads)).collect::<Result<Vec<_>, _>>()?;
            let (predictions, abstention_reasons) = match faces.first() {
                Some(first) => (first.predictions.clone(), first.abstention_reasons.clone()),
                None => (Vec::new(), abstain(found.reasons())),
            };
            let n_faces_found = i32::try_from(found.n_found).unwrap_or(i32::MAX);
            let abstained = !abstention_reasons.is_empty();
            v1::PredictResponse { predictions, abstained, abstention_reasons, faces, n_faces_found, ..answer }
        }
    };
    Ok(answer)
}

fn reading(version: &Version, face: &FaceRead, heads: &[String]) -> Result<FaceReading, AppError> {
    let predictions = match &face.output {
        Some(output) => wanted(predictions(version, output)?, heads),
        None => Vec::new(),
    };
    let embedding = face.embedding.clone();
    let embedding = embedding.map(|(space, values)| v1::Embedding { values, space: space.to_string() });
    Ok(FaceReading { predictions, embedding, ..found_face(face) })
}

/// Converts a face's position and quality, without the networks' outputs.
pub(super) fn found_face(face: &FaceRead) -> FaceReading {
    let bounds = face.face.bounds;
    let point = |p: Point| v1::Point { x: p.x.into(), y: p.y.into() };
    FaceReading {
        r#box: Some(v1::BoundingBox {
            left: bounds.left.into(),
            top: bounds.top.into(),
            right: bounds.right.into(),
            bottom: bounds.bottom.into(),
        }),
        landmarks: face.face.landmarks.map(point).to_vec(),
        quality: face.quality.clone(),
        upside_down: face.upside_down,
        abstained: !face.reasons.is_empty(),
        abstention_reasons: face.reasons.iter().map(|&reason| reason.into()).collect(),
        ..FaceReading::default()
    }
}

fn wanted(predictions: Vec<Prediction>, heads: &[String]) -> Vec<Prediction> {
    predictions.into_iter().filter(|p| heads.is_empty() || heads.contains(&p.head)).collect()
}
