//! Pictures for people: SVG over a photo, and a page of matches. Text and vectors need no font and no drawing library,
//! and every browser shows them. The photos are embedded, so each file is self-contained.

use std::fmt::Write;

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};

use super::{output, wording::reason};
use crate::{
    proto::v1::{self, prediction::Result as Answer},
    vision::{DecodeLimits, DecodeSize, decode},
};

/// The approximate longest side in pixels of an annotated photo and of one on a sheet.
const ANNOTATED_PX: u32 = 1600;
const SHEET_PX: u32 = 400;

/// The number of letters that fit a face's width.
const CHARACTERS_A_LINE: f64 = 9.0;

/// A photo and a match, for a page.
pub(super) struct Match {
    /// The face's name, and its subject.
    pub(super) title: String,
    /// The lines below it.
    pub(super) lines: Vec<String>,
    /// The photo's bytes, if they were found.
    pub(super) photo: Option<Vec<u8>>,
}

/// Draws the faces' boxes, landmarks, answers and reasons over the photo, as SVG.
///
/// # Errors
/// Fails when the photo cannot be decoded.
pub(super) fn annotated(photo: &[u8], answer: &v1::PredictResponse) -> anyhow::Result<String> {
    let Upright { jpeg, width, height } = upright(photo, ANNOTATED_PX)?;
    // The line width is proportional to the photo's size.
    let unit = f64::from(width.max(height)) / 100.0;
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"100%\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\">\n<image width=\"{width}\" height=\"{height}\" href=\"{}\"/>",
        data_uri(&jpeg),
    )?;
    for (i, face) in answer.faces.iter().enumerate() {
        let place = face.r#box.unwrap_or_default();
        let colour = if face.abstained { "#d33" } else { "#2b2" };
        writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{:.2}\"/>",
            place.left,
            place.top,
            place.right - place.left,
            place.bottom - place.top,
            unit / 2.0,
        )?;
        for point in &face.landmarks {
            let (x, y, r) = (point.x, point.y, unit * 0.7);
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\" fill=\"{colour}\"/>")?;
        }
        let mut lines: Vec<String> = face.predictions.iter().flat_map(short).collect();
        if face.abstained {
            lines.push("no answer:".to_owned());
            lines.extend(face.abstention_reasons().map(reason));
        }
        if let Some(first) = lines.first_mut().filter(|_| answer.faces.len() > 1) {
            *first = format!("{}. {first}", i + 1);
        }
        // As wide as the face, so that captions of neighbours do not overlap.
        let size = ((place.right - place.left) / CHARACTERS_A_LINE).clamp(unit, unit * 4.0);
        captions(&mut svg, &lines, (place.left.max(0.0), place.top), size)?;
    }
    if answer.faces.is_empty() {
        let lines: Vec<_> = answer.abstention_reasons().map(|why| format!("no answer: {}", reason(why))).collect();
        captions(&mut svg, &lines, (unit, unit), unit * 3.0)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Formats a head's answer in lines as wide as a face.
fn short(prediction: &v1::Prediction) -> Vec<String> {
    match &prediction.result {
        Some(Answer::Regression(r)) => {
            let mut lines = vec![format!("{} {:.0} {}", prediction.head, r.value, r.unit)];
            lines.extend(r.lower.zip(r.upper).map(|(lower, upper)| format!("({lower:.0} to {upper:.0})")));
            lines
        }
        Some(Answer::Classification(c)) => vec![format!("{} {}", c.label, output::percent(c.probability))],
        None => Vec::new(),
    }
}

/// Draws lines of text at a place, with a dark rim for legibility on any photo.
fn captions(svg: &mut String, lines: &[String], (left, top): (f64, f64), size: f64) -> anyhow::Result<()> {
    for (i, line) in lines.iter().enumerate() {
        // Above the box if there is room, else from the photo's upper edge down.
        let first = (top - size * 1.2 * lines.len() as f64).max(0.0);
        let y = first + size * 1.2 * (i as f64 + 0.85);
        let text = escaped(line);
        // The rim first and the letters over it: not every viewer supports `paint-order`.
        for (fill, rim) in
            [("#000", format!(" stroke=\"#000\" stroke-width=\"{:.2}\"", size / 5.0)), ("#fff", String::new())]
        {
            writeln!(
                svg,
                "<text x=\"{left:.1}\" y=\"{y:.1}\" font-size=\"{size:.1}\" fill=\"{fill}\"{rim}>{text}</text>"
            )?;
        }
    }
    Ok(())
}

/// Creates a page of a query and its matches, below an explanation.
pub(super) fn sheet(about: &str, query: &Match, matches: &[Match]) -> String {
    let mut page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Matches</title><style>body{{font:15px sans-serif;margin:2em}}\
         main{{display:flex;flex-wrap:wrap;gap:1em}}figure{{margin:0;width:13em}}img,i{{width:13em;height:13em;\
         object-fit:contain;display:block;background:#ddd;text-align:center;line-height:13em;color:#777}}\
         figcaption b{{word-break:break-all}}</style><p>{}</p><main>\n",
        escaped(about)
    );
    for one in std::iter::once(query).chain(matches) {
        let upright = one.photo.as_deref().and_then(|photo| upright(photo, SHEET_PX).ok());
        let picture = match upright {
            Some(Upright { jpeg, .. }) => format!("<img alt=\"\" src=\"{}\">", data_uri(&jpeg)),
            None => "<i>no photo at hand</i>".to_owned(),
        };
        let lines: Vec<_> = one.lines.iter().map(|line| escaped(line)).collect();
        let title = escaped(&one.title);
        page.push_str(&format!(
            "<figure>{picture}<figcaption><b>{title}</b><br>{}</figcaption></figure>\n",
            lines.join("<br>")
        ));
    }
    page.push_str("</main>\n");
    page
}

/// A photo as a JPEG that every viewer shows alike: upright, in sRGB, and without the file's metadata, which may
/// contain the place it was taken.
struct Upright {
    jpeg: Vec<u8>,
    /// The photo's own size, upright, in pixels.
    width: u32,
    height: u32,
}

/// Decodes a photo to about `long_side` pixels, or its own size if that is smaller.
fn upright(photo: &[u8], long_side: u32) -> anyhow::Result<Upright> {
    let image = decode(photo, &DecodeLimits::default(), DecodeSize::LongSide(long_side)).context("the photo")?;
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 90).encode(
        image.rgb(),
        image.width_px(),
        image.height_px(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(Upright { jpeg, width: image.full_width_px(), height: image.full_height_px() })
}

fn data_uri(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg))
}

/// Escapes text for HTML and SVG.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTRAIT: &[u8] = include_bytes!("../../tests/fixtures/portrait.jpg");

    #[test]
    fn a_face_is_drawn_with_its_answer() {
        let face = v1::FaceReading {
            r#box: Some(v1::BoundingBox { left: 100.0, top: 80.0, right: 220.0, bottom: 240.0 }),
            landmarks: vec![v1::Point { x: 130.0, y: 140.0 }],
            abstained: true,
            abstention_reasons: vec![v1::AbstentionReason::Blurred.into()],
            ..v1::FaceReading::default()
        };
        let answer = v1::PredictResponse { faces: vec![face], ..v1::PredictResponse::default() };
        let svg = annotated(PORTRAIT, &answer).unwrap();
        for part in ["viewBox=\"0 0 320 320\"", "width=\"120.0\" height=\"160.0\"", "cx=\"130.0\"", ">blurred<"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(annotated(b"no photo", &answer).is_err());
    }

    #[test]
    fn a_page_shows_what_it_is_given_and_runs_nothing() {
        let one = |title: &str, photo| Match { title: title.to_owned(), lines: vec!["98 %".to_owned()], photo };
        let page = sheet("a < b", &one("query", Some(PORTRAIT.to_vec())), &[one("<script>alert(1)</script>", None)]);
        assert!(page.contains("data:image/jpeg;base64,") && page.contains("98 %") && page.contains("a &lt; b"));
        assert!(page.contains("no photo at hand") && !page.contains("<script>"));
    }
}
