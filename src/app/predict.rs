//! Predict: a photo to typed answers, each with its interval.

use bytes::Bytes;

use super::{AppError, CallContext, Outcome, Photos};
use crate::{proto::v1, serving::predictions};

/// Answers one photo, or says why it cannot be used.
///
/// `heads` names the heads wanted; empty means all of the version's.
///
/// # Errors
/// When there is no such version or head, the bytes are no readable image, or there is no room or time for it.
pub async fn predict(
    photos: &Photos,
    call: &CallContext,
    model: &str,
    image: Bytes,
    heads: &[String],
) -> Result<v1::PredictResponse, AppError> {
    let read = photos.read(call, model, image).await?;
    let version = read.version.to_string();
    if let Some(unknown) = heads.iter().find(|h| read.manifest.heads.iter().all(|known| known.name != **h)) {
        let known: Vec<_> = read.manifest.heads.iter().map(|h| h.name.as_str()).collect();
        return Err(AppError::field(
            "heads",
            format!("{version} has no head {unknown:?}, it has {}", known.join(", ")),
        ));
    }
    let (answers, reasons) = match &read.outcome {
        Outcome::Answered(output) => (predictions(&read.manifest, output)?, Vec::new()),
        Outcome::TooSmall { .. } => (Vec::new(), vec![v1::AbstentionReason::FaceTooSmall.into()]),
    };
    Ok(v1::PredictResponse {
        model_version: version,
        predictions: answers.into_iter().filter(|p| heads.is_empty() || heads.contains(&p.head)).collect(),
        abstained: !reasons.is_empty(),
        abstention_reasons: reasons,
        timing: Some(read.timing),
    })
}
