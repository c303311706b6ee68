//! Formats answers for people: predictions, reasons and notes.

use super::output;
use crate::{
    app::signals_of,
    proto::v1::{self, prediction::Result as Answer},
};

/// Formats the answer to a photo as lines for people.
pub(super) fn text(photo: &str, answer: &v1::PredictResponse) -> String {
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
        text.push_str("\n  no predictions: this version has no heads");
    }
    if answer.faces.is_empty() {
        return text + &predictions("  ", &answer.predictions);
    }
    if answer.n_faces_found > 1 {
        text.push_str(&format!("\n  {} faces found, {} read", answer.n_faces_found, answer.faces.len()));
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

/// Formats reasons, separated by commas.
pub(super) fn reasons(reasons: impl Iterator<Item = v1::AbstentionReason>) -> String {
    reasons.map(reason).collect::<Vec<_>>().join(", ")
}

/// Lists the anomalies of a photo's file; `None` if there are none.
pub(super) fn notes(notes: impl Iterator<Item = v1::PhotoNote>) -> Option<String> {
    let text_of = |note| match note {
        v1::PhotoNote::EndMissing => "its end marker is missing or misplaced; every pixel is present",
        v1::PhotoNote::ChunkMissing => "its header announces a chunk that is missing",
        v1::PhotoNote::ColoursUnsure => "its colour description could not be used, so colours may be wrong",
        v1::PhotoNote::Unspecified => "in a way unknown to this program",
    };
    let texts: Vec<_> = notes.map(text_of).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Formats a face's reasons, each with the quality signals it depends on; `visage models show` shows their thresholds.
fn reasons_of(face: &v1::FaceReading) -> String {
    let with_signals = |why: v1::AbstentionReason| {
        let signals = signals_of(why).into_iter();
        let texts = signals.filter_map(|name| Some(format!("{name} {:.2}", face.quality.get(name)?)));
        match texts.collect::<Vec<_>>().join(", ") {
            texts if texts.is_empty() => reason(why),
            texts => format!("{} ({texts})", reason(why)),
        }
    };
    face.abstention_reasons().map(with_signals).collect::<Vec<_>>().join(", ")
}

fn predictions(indent: &str, predictions: &[v1::Prediction]) -> String {
    let width = predictions.iter().map(|p| p.head.len()).max().unwrap_or(0);
    let mut text = String::new();
    for prediction in predictions {
        let result = prediction_text(prediction);
        text.push_str(&format!("\n{indent}{:width$}  {result}", prediction.head));
    }
    text
}

/// Formats a head's prediction.
fn prediction_text(prediction: &v1::Prediction) -> String {
    match &prediction.result {
        Some(Answer::Regression(r)) => regression(r),
        Some(Answer::Classification(c)) => format!("{} ({})", c.label, output::percent(c.probability)),
        None => String::new(),
    }
}

/// Formats a reason: `face too small`.
#[must_use]
pub fn reason(reason: v1::AbstentionReason) -> String {
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
    fn a_reason_is_shown_with_its_signals() {
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
