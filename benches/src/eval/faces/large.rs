//! Puts faces into photos of many megapixels: the answer about a face must not depend on the wall around it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use image::{Rgb, RgbImage, imageops};
use jpeg_encoder::{ColorType, Encoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use visage::proto::v1;

use super::{
    Findings, SUITE, Setup,
    predicting::{failed, predict_all, regression},
};
use crate::{
    eval::{metrics::share, table::people},
    evidence::{Bar, Row, median},
};

/// Frames of one, twelve and 48 megapixels: name, width and height in pixels.
const FRAMES: [(&str, u16, u16); 3] = [("1mp", 1152, 864), ("12mp", 4032, 3024), ("48mp", 8000, 6000)];
/// Sides of faces in pixels.
const SIDES_PX: [u32; 9] = [400, 280, 200, 140, 100, 70, 50, 35, 25];
/// The smallest face that the version answers, the smallest that the detector finds, and the longest side that it
/// searches, in pixels.
const LEAST_ANSWERED_PX: f64 = 32.0;
const LEAST_PX: f64 = 20.0;
const LOOKED_PX: f64 = 1024.0;
/// The factor above the smallest size at which most faces are found.
const ROOM: f64 = 1.3;
const N_PHOTOS: usize = 12;
/// An age this far from that of the face alone counts as another answer.
const OTHER_ANSWER_YEARS: f64 = 5.0;

/// A face alone, and the same face in a frame.
struct Pair {
    frame: &'static str,
    /// True if the face is large enough to be found in the frame and answered.
    is_visible: bool,
    alone: PathBuf,
    framed: PathBuf,
}

/// Runs the part on the photos with the largest faces.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let photos: Vec<PathBuf> = people(&setup.data.join("identities")).into_iter().map(|(path, _)| path).collect();
    if photos.is_empty() {
        println!("no identities/ in the folder: large photos are left out");
        return Ok(Findings::default());
    }
    let found =
        predict_all(&mut setup.server.clients, photos.clone(), v1::PredictRequest::default(), "finding large faces")
            .await?;
    let mut faces: Vec<(f64, PathBuf)> = photos
        .into_iter()
        .zip(found)
        .filter_map(|(path, answer)| {
            let face = answer.ok()?.faces.into_iter().next().filter(|face| !face.abstained)?;
            Some((*face.quality.get("face_px")?, path))
        })
        .collect();
    faces.sort_by(|a, b| b.0.total_cmp(&a.0));
    faces.truncate(N_PHOTOS);

    let folder = tempfile::tempdir().context("a temporary folder")?;
    let place = folder.path().to_owned();
    let pairs = tokio::task::spawn_blocking(move || pairs(&faces, &place)).await??;
    let request = v1::PredictRequest { return_embedding: true, ..v1::PredictRequest::default() };
    let of = |which: fn(&Pair) -> &PathBuf| pairs.iter().map(|pair| which(pair).clone()).collect::<Vec<_>>();
    let alone = predict_all(&mut setup.server.clients, of(|pair| &pair.alone), request.clone(), "faces alone").await?;
    let framed = predict_all(&mut setup.server.clients, of(|pair| &pair.framed), request, "faces in frames").await?;

    let mut rows = vec![failed("large", alone.iter().chain(&framed))];
    for (frame, ..) in FRAMES {
        let of_frame: Vec<(&Pair, &v1::PredictResponse, &v1::PredictResponse)> = pairs
            .iter()
            .zip(alone.iter().zip(&framed))
            // Refused photos have a row of their own.
            .filter_map(|(pair, (alone, framed))| Some((pair, alone.as_ref().ok()?, framed.as_ref().ok()?)))
            .filter(|(pair, alone, _)| pair.frame == frame && !alone.abstained)
            .collect();
        let visible = of_frame.iter().filter(|(pair, ..)| pair.is_visible);
        let (mut years, mut cosines) = (Vec::new(), Vec::new());
        for (_, alone, framed) in visible.clone() {
            years.extend(years_apart(alone, framed));
            cosines.extend(cosine(alone, framed));
        }
        let furthest = years.iter().copied().fold(0.0, f64::max);
        let least = cosines.iter().copied().fold(1.0, f64::min);
        let n_visible = visible.clone().count();
        let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in visible.flat_map(|(_, _, framed)| framed.abstention_reasons()) {
            *left_out.entry(reason.as_str_name().trim_start_matches("ABSTENTION_REASON_")).or_default() += 1;
        }
        let left_out: String = left_out.iter().map(|(reason, n)| format!("; {n} {reason}")).collect();
        rows.push(
            Row::new(SUITE, format!("large.{frame}.answered"), years.len() as f64 / n_visible.max(1) as f64, "")
                .bar(Bar::AtLeast(0.9))
                .note(format!("of {n_visible} faces large enough to be found, and answered alone{left_out}")),
        );
        if years.is_empty() {
            continue;
        }
        rows.push(
            Row::new(SUITE, format!("large.{frame}.age_apart"), median(&mut years), "years")
                .bar(Bar::AtMost(1.0))
                .note(format!("median, from the same face alone; furthest {furthest:.1}")),
        );
        rows.push(
            Row::new(SUITE, format!("large.{frame}.cosine"), median(&mut cosines), "")
                .bar(Bar::AtLeast(0.99))
                .note(format!("median, to the same face alone; least {least:.3}")),
        );
        let small: Vec<_> = of_frame.iter().filter(|(pair, ..)| !pair.is_visible).collect();
        let is_other = |(_, alone, framed): &&&(&Pair, &v1::PredictResponse, &v1::PredictResponse)| {
            years_apart(alone, framed).is_some_and(|years| years > OTHER_ANSWER_YEARS)
        };
        if !small.is_empty() {
            let n_answered = small.iter().filter(|(_, _, framed)| !framed.abstained).count();
            let n_other = small.iter().filter(is_other).count();
            rows.push(
                Row::new(SUITE, format!("large.{frame}.too_small.otherwise"), n_other as f64, "")
                    .bar(Bar::AtMost(0.0))
                    .note(format!(
                        "of {} faces too small to be searched for, {n_answered} are answered; this many over \
                         {OTHER_ANSWER_YEARS} years from the same face alone",
                        small.len()
                    )),
            );
            rows.push(Row::new(
                SUITE,
                format!("large.{frame}.too_small.abstained"),
                share(small.iter().map(|(_, _, framed)| framed.abstained)),
                "",
            ));
        }
    }
    Ok(Findings { rows, figures: Vec::new() })
}

fn pairs(faces: &[(f64, PathBuf)], folder: &Path) -> anyhow::Result<Vec<Pair>> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut pairs = Vec::new();
    for (n, (face_px, path)) in faces.iter().enumerate() {
        let photo = image::open(path).with_context(|| path.display().to_string())?.into_rgb8();
        for side in SIDES_PX {
            let scaled = |length: u32| ((f64::from(length) * f64::from(side) / face_px).round() as u32).max(1);
            let (width, height) = (scaled(photo.width()), scaled(photo.height()));
            let small = imageops::resize(&photo, width, height, imageops::FilterType::CatmullRom);
            let alone = folder.join(format!("{n}-{side}.jpg"));
            write(&small, &alone)?;
            for (frame, frame_width, frame_height) in FRAMES {
                let (wide, high) = (u32::from(frame_width), u32::from(frame_height));
                if width > wide || height > high {
                    continue;
                }
                let least = (LEAST_PX * f64::from(wide) / LOOKED_PX).max(LEAST_ANSWERED_PX);
                // Faces between the two sizes may be found or not.
                let is_visible = f64::from(side) >= ROOM * least;
                if !is_visible && f64::from(side) > least / ROOM {
                    continue;
                }
                let mut wall = RgbImage::from_pixel(wide, high, Rgb([128; 3]));
                let (left, top) = (rng.random_range(0..=wide - width), rng.random_range(0..=high - height));
                imageops::replace(&mut wall, &small, left.into(), top.into());
                let framed = folder.join(format!("{n}-{side}-{frame}.jpg"));
                write(&wall, &framed)?;
                pairs.push(Pair { frame, is_visible, alone: alone.clone(), framed });
            }
        }
    }
    Ok(pairs)
}

fn write(picture: &RgbImage, file: &Path) -> anyhow::Result<()> {
    let encoder = Encoder::new_file(file, 95)?;
    Ok(encoder.encode(picture, picture.width() as u16, picture.height() as u16, ColorType::Rgb)?)
}

fn years_apart(a: &v1::PredictResponse, b: &v1::PredictResponse) -> Option<f64> {
    Some((regression(a, "age")?.value - regression(b, "age")?.value).abs())
}

fn cosine(a: &v1::PredictResponse, b: &v1::PredictResponse) -> Option<f64> {
    let of = |answer: &v1::PredictResponse| {
        let values = &answer.faces.first()?.embedding.as_ref()?.values;
        let length = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        Some(values.iter().map(|v| f64::from(*v) / length).collect::<Vec<_>>())
    };
    Some(of(a)?.iter().zip(of(b)?).map(|(a, b)| a * b).sum())
}
