//! Predicts many photos over one stream, and collects the answers.

use std::path::PathBuf;

use anyhow::bail;
use futures::StreamExt;
use visage::{
    cli::{connection::Clients, output},
    proto::{
        rpc,
        v1::{self, prediction::Result as Answer, stream_predict_response::Result as Item},
    },
};

use super::SUITE;
use crate::evidence::{Bar, Row};

/// The answer to a photo, or its error.
pub(in crate::eval) type PhotoResult = Result<v1::PredictResponse, rpc::Status>;

/// Predicts every photo; the answers are in the photos' order. An unreadable file is sent as an empty image.
pub(in crate::eval) async fn predict_all(
    clients: &mut Clients,
    photos: Vec<PathBuf>,
    template: v1::PredictRequest,
    what: &'static str,
) -> anyhow::Result<Vec<PhotoResult>> {
    let progress = output::bar(photos.len() as u64, what);
    let n_photos = photos.len();
    let requests = futures::stream::iter(photos).then(move |path| {
        let template = template.clone();
        async move {
            let image = tokio::fs::read(&path).await.unwrap_or_default();
            let request = v1::PredictRequest { image: image.into(), ..template };
            v1::StreamPredictRequest { request: Some(request), correlation_id: String::new() }
        }
    });
    let mut stream = clients.visage.stream_predict(requests).await?.into_inner();
    let mut answers = Vec::with_capacity(n_photos);
    while let Some(answer) = stream.message().await? {
        progress.inc(1);
        answers.push(match answer.result {
            Some(Item::Response(response)) => Ok(response),
            Some(Item::Error(error)) => Err(error),
            None => bail!("an answer of the stream is empty"),
        });
    }
    progress.finish_and_clear();
    if answers.len() < n_photos {
        bail!("the stream of answers ended after {} of {n_photos}", answers.len());
    }
    Ok(answers)
}

/// Counts the photos that were refused; none may be.
pub(super) fn failed<'a>(part: &str, answers: impl IntoIterator<Item = &'a PhotoResult>) -> Row {
    let messages: Vec<&str> =
        answers.into_iter().filter_map(|answer| Some(answer.as_ref().err()?.message.as_str())).collect();
    let row = Row::new(SUITE, format!("{part}.refused"), messages.len() as f64, "").bar(Bar::AtMost(0.0));
    row.note(messages.first().copied().unwrap_or_default())
}

/// Thresholds that every face meets.
pub(super) fn loosest() -> v1::QualityThresholds {
    v1::QualityThresholds {
        min_face_px: Some(0.0),
        min_detection: Some(0.0),
        min_sharpness: Some(0.0),
        min_brightness: Some(0.0),
        max_brightness: Some(1.0),
        min_contrast: Some(0.0),
        max_yaw_degrees: Some(90.0),
        max_pitch_degrees: Some(90.0),
        min_symmetry: Some(-1.0),
        min_visible: Some(0.0),
        max_misfit: Some(1.0),
        max_spread: Some(100.0),
    }
}

/// Returns the number that a head predicts.
pub(super) fn regression<'a>(response: &'a v1::PredictResponse, head: &str) -> Option<&'a v1::Regression> {
    response.predictions.iter().find(|p| p.head == head).and_then(|p| match &p.result {
        Some(Answer::Regression(r)) => Some(r),
        _ => None,
    })
}

/// Returns the choice that a head predicts.
pub(super) fn classification<'a>(response: &'a v1::PredictResponse, head: &str) -> Option<&'a v1::Classification> {
    response.predictions.iter().find(|p| p.head == head).and_then(|p| match &p.result {
        Some(Answer::Classification(c)) => Some(c),
        _ => None,
    })
}

/// Returns the label of that choice.
pub(super) fn label<'a>(response: &'a v1::PredictResponse, head: &str) -> Option<&'a str> {
    classification(response, head).map(|c| c.label.as_str())
}
