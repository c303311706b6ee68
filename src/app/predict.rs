//! Predict: a photo to typed answers, each with its interval.

use bytes::Bytes;

use super::{AppError, Call, FaceRead, Outcome, Photos, Read, Wants, photos::notes_to_proto};
use crate::{
    names::ModelRef,
    proto::{
        store::VersionRecord,
        v1::{self, FaceReading, Prediction},
    },
    registry::name_of,
    serving::predictions,
    vision::Point,
};

/// Answers one photo with the version that `model` means, or says why it cannot be used. No model means the default
/// model's champion.
///
/// `heads` names the heads wanted; empty means all of the version's.
///
/// # Errors
/// When there is no such version or head, the bytes are no readable image, a threshold is out of bounds, or there is no
/// room or time for it.
pub async fn predict(
    call: &Call,
    photos: &Photos,
    model: Option<&ModelRef>,
    image: Bytes,
    heads: &[String],
    wants: &Wants,
) -> Result<v1::PredictResponse, AppError> {
    if !heads.is_empty() {
        // Before a network has worked for nothing.
        check_heads(&*photos.manifest(model).await?, heads)?;
    }
    let read = photos.read(call, model, image, wants).await?;
    let version = read.version.to_string();
    // Again: an alias may have moved meanwhile.
    check_heads(&read.manifest, heads)?;
    let answer = v1::PredictResponse {
        model_version: version,
        timing: Some(read.timing),
        photo_notes: notes_to_proto(&read.notes),
        ..v1::PredictResponse::default()
    };
    let abstain = |reasons: Vec<v1::AbstentionReason>| reasons.into_iter().map(Into::into).collect::<Vec<i32>>();
    let answer = match &read.outcome {
        Outcome::Answered(output) => {
            let predictions = wanted(predictions(&read.manifest, output)?, heads);
            v1::PredictResponse { predictions, ..answer }
        }
        Outcome::TooSmall { .. } => {
            let abstention_reasons = abstain(vec![v1::AbstentionReason::FaceTooSmall]);
            v1::PredictResponse { abstained: true, abstention_reasons, ..answer }
        }
        Outcome::Faces(found) => {
            let faces = found.faces.iter().map(|face| reading(&read, face, heads)).collect::<Result<Vec<_>, _>>()?;
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

fn check_heads(manifest: &VersionRecord, heads: &[String]) -> Result<(), AppError> {
    let Some(unknown) = heads.iter().find(|h| manifest.heads.iter().all(|known| known.name != **h)) else {
        return Ok(());
    };
    let known: Vec<_> = manifest.heads.iter().map(|h| h.name.as_str()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let version = name_of(manifest);
    Err(AppError::field("heads", format!("{version} has no head {unknown:?}, it has {known}")))
}

fn reading(read: &Read, face: &FaceRead, heads: &[String]) -> Result<FaceReading, AppError> {
    let predictions = match &face.output {
        Some(output) => wanted(predictions(&read.manifest, output)?, heads),
        None => Vec::new(),
    };
    let embedding = face.embedding.clone().map(|(space, values)| v1::Embedding { values, space });
    Ok(FaceReading { predictions, embedding, ..found_face(face) })
}

/// A face as it was found and judged, without what networks said of it.
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
