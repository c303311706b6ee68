//! Turns people upside down: they must be read rotated, or not answered.

use std::path::{Path, PathBuf};

use anyhow::Context;
use image::{ImageFormat, RgbImage, imageops};
use visage::proto::v1;

use super::{
    Findings, SUITE, Setup,
    predicting::{PhotoResult, failed, predict_all, regression},
};
use crate::{
    eval::table::people,
    evidence::{Bar, Row, median},
};

/// The number of upright photos of the training part that are also read.
const N_UPRIGHT: usize = 1000;

/// The name of a way to transform a photo, and its function.
type Transform = (&'static str, fn(&RgbImage) -> RgbImage);

const TRANSFORMS: [Transform; 2] =
    [("turned", imageops::rotate180::<RgbImage>), ("flipped", imageops::flip_vertical::<RgbImage>)];

/// Runs the part on the photos below `identities/`, and on upright ones of the training part.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let photos: Vec<PathBuf> = people(&setup.data.join("identities")).into_iter().map(|(path, _)| path).collect();
    if photos.is_empty() {
        println!("no identities/ in the folder: people upside down are left out");
        return Ok(Findings::default());
    }
    let clients = &mut setup.server.clients;
    let upright = predict_all(clients, photos.clone(), v1::PredictRequest::default(), "upright").await?;
    let mut rows = vec![
        Row::new(SUITE, "upside.upright.answered", count(&upright, |answer| !answer.abstained), "")
            .note(format!("of {} photos", photos.len())),
        Row::new(SUITE, "upside.upright.rotated", count(&upright, was_rotated), "").bar(Bar::AtMost(0.0)),
    ];
    let train = setup.table.train();
    let step = (train.len() / N_UPRIGHT).max(1);
    let others: Vec<PathBuf> = train.iter().step_by(step).take(N_UPRIGHT).map(|face| face.path.clone()).collect();
    let n_others = others.len();
    let others = predict_all(clients, others, v1::PredictRequest::default(), "upright, of the training part").await?;
    rows.push(
        Row::new(SUITE, "upside.train.answered", count(&others, |answer| !answer.abstained), "")
            .note(format!("of {n_others} photos")),
    );
    rows.push(Row::new(SUITE, "upside.train.rotated", count(&others, was_rotated), "").bar(Bar::AtMost(0.0)));

    rows.push(failed("upside.upright", upright.iter().chain(&others)));

    let folder = tempfile::tempdir().context("a temporary folder")?;
    for (name, transform) in TRANSFORMS {
        let (place, from) = (folder.path().to_owned(), photos.clone());
        let turned = tokio::task::spawn_blocking(move || turned(&from, &place, name, transform)).await??;
        let answers = predict_all(clients, turned, v1::PredictRequest::default(), "upside down").await?;
        let as_upright = |answer: &v1::PredictResponse| !answer.abstained && !was_rotated(answer);
        let found_and_read = |answer: &v1::PredictResponse| !answer.abstained && was_rotated(answer);
        let n_read = count(&answers, found_and_read);
        let mut apart: Vec<f64> = upright
            .iter()
            .zip(&answers)
            .filter_map(|(upright, answer)| {
                let (upright, answer) = (upright.as_ref().ok()?, answer.as_ref().ok().filter(|a| found_and_read(a))?);
                Some((regression(upright, "age")?.value - regression(answer, "age")?.value).abs())
            })
            .collect();
        rows.push(
            Row::new(SUITE, format!("upside.{name}.as_upright"), count(&answers, as_upright), "")
                .bar(Bar::AtMost(0.0))
                .note(format!("of {} photos; {n_read} were read rotated", photos.len())),
        );
        if !apart.is_empty() {
            rows.push(
                Row::new(SUITE, format!("upside.{name}.age_apart"), median(&mut apart), "years")
                    .note("median of those that were read rotated, from the photo as it was"),
            );
        }
        rows.push(failed(&format!("upside.{name}"), &answers));
    }
    Ok(Findings { rows, figures: Vec::new() })
}

fn count(answers: &[PhotoResult], which: impl Fn(&v1::PredictResponse) -> bool) -> f64 {
    answers.iter().flatten().filter(|answer| which(answer)).count() as f64
}

fn was_rotated(answer: &v1::PredictResponse) -> bool {
    answer.faces.first().is_some_and(|face| face.upside_down)
}

fn turned(
    photos: &[PathBuf],
    folder: &Path,
    name: &str,
    transform: fn(&RgbImage) -> RgbImage,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (n, path) in photos.iter().enumerate() {
        let photo = image::open(path).with_context(|| path.display().to_string())?.into_rgb8();
        let file = folder.join(format!("{name}-{n}.png"));
        transform(&photo).save_with_format(&file, ImageFormat::Png)?;
        files.push(file);
    }
    Ok(files)
}
