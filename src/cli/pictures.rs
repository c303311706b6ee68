//! Pictures for people: SVG over a photo, and a page of matches. Text and vectors, so that no font and no drawing
//! library is needed, and every browser shows them; the photos lie within, so that a file stands alone.

use std::fmt::Write;

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};

use super::predict::{reason, said};
use crate::{
    proto::v1,
    vision::{DecodeLimits, Wanted, decode},
};

/// A photo and a match, for a page.
pub(super) struct Match {
    /// The face's name, and its subject.
    pub(super) title: String,
    /// Lines below.
    pub(super) lines: Vec<String>,
    /// The photo's bytes, if they were found.
    pub(super) photo: Option<Vec<u8>>,
}

/// The photo with its faces' boxes, landmarks, answers and reasons, as SVG.
///
/// # Errors
/// When the photo cannot be decoded, of which the size must be known.
pub(super) fn annotated(photo: &[u8], answer: &v1::PredictResponse) -> anyhow::Result<String> {
    let image = decode(photo, &DecodeLimits::default(), Wanted::LongSide(1)).context("the photo")?;
    let (width, height) = (image.full_width_px(), image.full_height_px());
    // Lines and letters of a size that is seen at any photo's.
    let unit = f64::from(width.max(height)) / 100.0;
    let mut svg = String::new();
    write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"{}\">\n<image width=\"{width}\" height=\"{height}\" href=\"{}\"/>\n",
        unit * 3.0,
        data_uri(photo),
    )?;
    for face in &answer.faces {
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
        let mut lines: Vec<String> = face.predictions.iter().map(|p| format!("{} {}", p.head, said(p))).collect();
        lines.extend(face.abstention_reasons().map(|why| format!("no answer: {}", reason(why))));
        captions(&mut svg, &lines, (place.left.max(0.0), place.top), unit)?;
    }
    if answer.faces.is_empty() {
        let lines: Vec<_> = answer.abstention_reasons().map(|why| format!("no answer: {}", reason(why))).collect();
        captions(&mut svg, &lines, (unit, unit), unit)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Lines of text at a place, dark-rimmed so that they are read on any photo.
fn captions(svg: &mut String, lines: &[String], (left, top): (f64, f64), unit: f64) -> anyhow::Result<()> {
    for (i, line) in lines.iter().enumerate() {
        // Above the box where there is room, else from the photo's upper edge down.
        let first = (top - unit * 3.5 * lines.len() as f64).max(0.0);
        let y = first + unit * 3.5 * (i as f64 + 0.85);
        writeln!(
            svg,
            "<text x=\"{left:.1}\" y=\"{y:.1}\" fill=\"#fff\" stroke=\"#000\" stroke-width=\"{:.2}\" \
             paint-order=\"stroke\">{}</text>",
            unit / 1.5,
            escaped(line),
        )?;
    }
    Ok(())
}

/// A page of a query and its matches.
pub(super) fn sheet(query: &Match, matches: &[Match]) -> String {
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>Matches</title><style>body{font:15px sans-serif;margin:2em}\
         main{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:13em}img,i{width:13em;height:13em;\
         object-fit:cover;display:block;background:#ddd}figcaption b{word-break:break-all}</style><main>\n",
    );
    for one in std::iter::once(query).chain(matches) {
        let picture = match &one.photo {
            Some(bytes) => format!("<img alt=\"\" src=\"{}\">", data_uri(bytes)),
            None => "<i></i>".to_owned(),
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

fn data_uri(photo: &[u8]) -> String {
    let kind = match photo {
        [0x89, b'P', ..] => "png",
        [b'R', b'I', ..] => "webp",
        _ => "jpeg",
    };
    format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(photo))
}

fn escaped(text: &str) -> String {
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
        for part in
            ["viewBox=\"0 0 320 320\"", "width=\"120.0\" height=\"160.0\"", "cx=\"130.0\"", "no answer: blurred"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert!(annotated(b"no photo", &answer).is_err());
    }

    #[test]
    fn a_page_shows_what_it_is_given_and_runs_nothing() {
        let one = |title: &str, photo| Match { title: title.to_owned(), lines: vec!["98 %".to_owned()], photo };
        let page = sheet(&one("query", Some(PORTRAIT.to_vec())), &[one("<script>alert(1)</script>", None)]);
        assert!(page.contains("data:image/jpeg;base64,") && page.contains("98 %") && !page.contains("<script>"));
    }
}
