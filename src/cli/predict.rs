//! `visage predict`: what a model says of photos.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;

use super::{connection::Remote, face_options::FaceArgs, failure, names, output, photo, pictures};
use crate::{
    app::signals_of,
    proto::v1::{self, prediction::Result as Answer, stream_predict_response::Result as Item},
};

/// Says what a model reads from photos.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage predict --model face portrait.jpg
  visage predict --model face@challenger --head age --json *.jpg | jq .response.predictions")]
pub(super) struct PredictArgs {
    /// JPEG, PNG or WebP files; - is standard input.
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    /// face for its champion, face@ALIAS, face/3 for a version; without it the server's default model answers.
    #[arg(long, short, default_value = "")]
    model: String,
    /// Only these heads; all of the model without it.
    #[arg(long)]
    head: Vec<String>,
    #[command(flatten)]
    faces: FaceArgs,
    /// Draws boxes, landmarks, answers and reasons over the photo, as an SVG picture; for one photo.
    #[arg(long, value_name = "FILE.svg")]
    annotate: Option<PathBuf>,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command; `false` when a photo could not be answered.
pub(super) async fn run(args: PredictArgs) -> anyhow::Result<bool> {
    let mut server = args.remote.connect().await?;
    let template =
        v1::PredictRequest { model: names::model(&args.model), heads: args.head.clone(), ..args.faces.request()? };
    if let Some(file) = &args.annotate {
        if args.photos.len() > 1 {
            bail!(failure::Usage("--annotate draws over one photo; give it one".to_owned()));
        }
        if file.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg")) {
            bail!(failure::Usage(format!("--annotate {}: writes SVG; name a file that ends in .svg", file.display())));
        }
    }
    if let [photo] = args.photos.as_slice() {
        let image = photo::read(photo).await?;
        let request = args.remote.request(v1::PredictRequest { image: image.clone(), ..template });
        let shown = photo.display().to_string();
        let response = server.visage.predict(request).await.with_context(|| shown.clone())?.into_inner();
        let lines = text(&shown, &response);
        if let Some(file) = &args.annotate {
            let picture = pictures::annotated(&image, &response)?;
            tokio::fs::write(file, picture).await.with_context(|| file.display().to_string())?;
        }
        // In the form of many, so that a script need not count its photos.
        let answer = v1::StreamPredictResponse { correlation_id: shown, result: Some(Item::Response(response)) };
        output::show(args.remote.json, &answer, |_| lines)?;
        return Ok(true);
    }
    let progress = output::bar(args.photos.len() as u64, "predicting");
    let photos = args.photos.clone();
    let unread = photo::Unread::default();
    let requests = unread.stream(photos).map(move |(path, image)| {
        let request = v1::PredictRequest { image, ..template.clone() };
        v1::StreamPredictRequest { request: Some(request), correlation_id: path.display().to_string() }
    });
    let mut answers = server.visage.stream_predict(requests).await?.into_inner();
    let (mut n_answers, mut all_answered) = (0, true);
    while let Some(answer) = answers.message().await? {
        n_answers += 1;
        progress.inc(1);
        all_answered &= matches!(answer.result, Some(Item::Response(_)));
        progress.suspend(|| {
            output::show(args.remote.json, &answer, |answer| match &answer.result {
                Some(Item::Response(response)) => text(&answer.correlation_id, response),
                Some(Item::Error(error)) => format!("{}  {}", answer.correlation_id, failure::one_line(error)),
                None => format!("{}  no answer", answer.correlation_id),
            })
        })?;
    }
    progress.finish_and_clear();
    let n_sent = args.photos.len() - unread.count();
    if n_answers < n_sent {
        bail!("the server answered {n_answers} of {n_sent} photos and ended the stream");
    }
    Ok(all_answered && unread.count() == 0)
}

fn text(photo: &str, answer: &v1::PredictResponse) -> String {
    let total = answer.timing.as_ref().and_then(|t| t.total).map(|d| f64::from(d.nanos) / 1e6 + d.seconds as f64 * 1e3);
    let mut text = format!("{photo}  {}  {:.0} ms", answer.model_version, total.unwrap_or(0.0));
    if let Some(odd) = notes(answer.photo_notes()) {
        text.push_str(&format!("\n  the file is odd: {odd}"));
    }
    if answer.abstained {
        let why = match answer.faces.as_slice() {
            [only] => reasons_of(only),
            _ => reasons(answer.abstention_reasons()),
        };
        text.push_str(&format!("\n  no answer: {why}"));
    }
    if !answer.abstained && answer.predictions.is_empty() && answer.faces.is_empty() {
        text.push_str("\n  nothing to say: this version has no heads");
    }
    if answer.faces.is_empty() {
        return text + &predictions("  ", &answer.predictions);
    }
    if answer.n_faces_found > 1 {
        text.push_str(&format!("\n  {} faces found, {} looked at", answer.n_faces_found, answer.faces.len()));
    }
    for (i, face) in answer.faces.iter().enumerate() {
        if answer.faces.len() > 1 {
            let place = face.r#box.unwrap_or_default();
            text.push_str(&format!("\n  face {} at {:.0},{:.0}", i + 1, place.left, place.top));
        }
        if face.abstained && (i > 0 || answer.faces.len() > 1) {
            text.push_str(&format!("\n    no answer: {}", reasons_of(face)));
        }
        let indent = if answer.faces.len() > 1 { "    " } else { "  " };
        if face.upside_down {
            text.push_str(&format!("\n{indent}upside down in the photo, and read rotated"));
        }
        text.push_str(&predictions(indent, &face.predictions));
        if let Some(embedding) = &face.embedding {
            let n = embedding.values.len();
            text.push_str(&format!("\n{indent}embedding of {n} numbers in {}; --json shows it", embedding.space));
        }
    }
    text
}

pub(super) fn reasons(reasons: impl Iterator<Item = v1::AbstentionReason>) -> String {
    reasons.map(reason).collect::<Vec<_>>().join(", ")
}

/// What was odd about a photo's file, if anything was.
pub(super) fn notes(notes: impl Iterator<Item = v1::PhotoNote>) -> Option<String> {
    let told = |note| match note {
        v1::PhotoNote::EndMissing => "its end mark is missing or misplaced; every pixel is there",
        v1::PhotoNote::ChunkMissing => "its header promises a chunk that is not there",
        v1::PhotoNote::ColoursUnsure => "its colours could not be followed and may be off",
        v1::PhotoNote::Unspecified => "in a way that this program does not know",
    };
    let told: Vec<_> = notes.map(told).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// The reasons with the signals that they were told from; `visage models show` tells what the version asks of each.
fn reasons_of(face: &v1::FaceReading) -> String {
    let with_signals = |why: v1::AbstentionReason| {
        let signals = signals_of(why).into_iter();
        let told = signals.filter_map(|name| Some(format!("{name} {:.2}", face.quality.get(name)?)));
        match told.collect::<Vec<_>>().join(", ") {
            told if told.is_empty() => reason(why),
            told => format!("{} ({told})", reason(why)),
        }
    };
    face.abstention_reasons().map(with_signals).collect::<Vec<_>>().join(", ")
}

fn predictions(indent: &str, predictions: &[v1::Prediction]) -> String {
    let width = predictions.iter().map(|p| p.head.len()).max().unwrap_or(0);
    let mut text = String::new();
    for prediction in predictions {
        let said = said(prediction);
        text.push_str(&format!("\n{indent}{:width$}  {said}", prediction.head));
    }
    text
}

/// What a head says, in words.
pub(super) fn said(prediction: &v1::Prediction) -> String {
    match &prediction.result {
        Some(Answer::Regression(r)) => regression(r),
        Some(Answer::Classification(c)) => format!("{} ({})", c.label, output::percent(c.probability)),
        None => String::new(),
    }
}

pub(super) fn reason(reason: v1::AbstentionReason) -> String {
    output::enum_name(reason.as_str_name(), "ABSTENTION_REASON_").to_lowercase().replace('_', " ")
}

fn regression(r: &v1::Regression) -> String {
    let value = format!("{:.1} {}", r.value, r.unit);
    match (r.lower, r.upper, r.coverage) {
        (Some(lower), Some(upper), Some(coverage)) => {
            format!("{} ({lower:.1} to {upper:.1} with {:.0} %)", value.trim_end(), 100.0 * coverage)
        }
        _ => value.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_with_what_it_was_told_from() {
        let face = v1::FaceReading {
            abstained: true,
            abstention_reasons: vec![v1::AbstentionReason::FaceTooSmall.into(), v1::AbstentionReason::Blurred.into()],
            quality: [("face_px".to_owned(), 30.0)].into(),
            ..v1::FaceReading::default()
        };
        assert_eq!(reasons_of(&face), "face too small (face_px 30.00), blurred");
    }

    #[test]
    fn an_answer_reads_as_a_sentence() {
        let regression = v1::Regression {
            value: 34.24,
            lower: Some(27.0),
            upper: Some(41.5),
            coverage: Some(0.9),
            unit: "years".to_owned(),
        };
        let classification =
            v1::Classification { label: "female".to_owned(), probability: 0.934, ..v1::Classification::default() };
        let prediction = |head: &str, result| v1::Prediction { head: head.to_owned(), result: Some(result) };
        let answer = v1::PredictResponse {
            model_version: "models/face/versions/3".to_owned(),
            predictions: vec![
                prediction("age", Answer::Regression(regression)),
                prediction("gender", Answer::Classification(classification)),
            ],
            ..v1::PredictResponse::default()
        };
        let lines = "a.jpg  models/face/versions/3  0 ms\n  age     34.2 years (27.0 to 41.5 with 90 %)\n  gender  female (93.4 %)";
        assert_eq!(text("a.jpg", &answer), lines);
    }
}
