//! Compares boxes and landmarks with those of the package that published the detector's weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use image::{Rgb, RgbImage, imageops};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use visage::proto::v1;

use super::{
    Findings, SUITE, Setup,
    predicting::{loosest, predict_all},
};
use crate::{
    eval::{charts, metrics::mean, page::Figure, table::Face},
    evidence::{Bar, Row, median},
};

const N_PHOTOS: usize = 1000;
const N_GROUPS: usize = 20;
/// Boxes that overlap less belong to different faces.
const MIN_IOU: f64 = 0.3;

/// The faces that the package finds in a photo.
#[derive(Deserialize)]
struct PeerAnswer {
    faces: Vec<PeerFace>,
}

#[derive(Deserialize)]
struct PeerFace {
    /// The left, top, right and bottom edge.
    r#box: [f64; 4],
    landmarks: Vec<[f64; 2]>,
}

/// Runs the part on photos of the training part, which was only used to choose thresholds, and on groups composed of
/// them.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let train = setup.table.train();
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let step = (train.len() / N_PHOTOS).max(1);
    let mut photos: Vec<PathBuf> = train.iter().step_by(step).take(N_PHOTOS).map(|face| face.path.clone()).collect();
    if photos.is_empty() {
        println!("no photo of faces.csv is outside the split `valid`: detection is left out");
        return Ok(Findings::default());
    }
    photos.extend(groups(&train, folder.path())?);
    let images = BTreeMap::from([("images", &photos)]);
    let script = ("facenet-pytorch", photos.len());
    let Some(theirs) = setup.peers.run_script::<PeerAnswer>("peers/faces.py", &["detect"], &images, script).await?
    else {
        return Ok(Findings::default());
    };
    let request = v1::PredictRequest {
        face_selection: v1::FaceSelection::All.into(),
        thresholds: Some(loosest()),
        ..v1::PredictRequest::default()
    };
    let ours = predict_all(&mut setup.server.clients, photos, request, "finding faces").await?;

    let (mut n_same, mut overlaps, mut distances) = (0, Vec::new(), Vec::new());
    for (answer, theirs) in ours.iter().zip(&theirs) {
        let faces = answer.as_ref().map(|answer| answer.faces.as_slice()).unwrap_or_default();
        n_same += usize::from(faces.len() == theirs.faces.len());
        for their in &theirs.faces {
            let overlap = |face: &v1::FaceReading| iou(edges(face), their.r#box);
            let Some(best) = faces.iter().max_by(|a, b| overlap(a).total_cmp(&overlap(b))) else { continue };
            if overlap(best) >= MIN_IOU {
                overlaps.push(overlap(best));
                let apart = best.landmarks.iter().zip(&their.landmarks).map(|(p, q)| (p.x - q[0]).hypot(p.y - q[1]));
                distances.push(mean(apart));
            }
        }
    }
    let caption = "How far the five landmarks lie from those of facenet-pytorch on the same face, on average.";
    let series = [("faces", distances.clone())];
    let chart = charts::histogram("pixels of the photo", (0.0, 5.0), 50, &series)?;
    let note = format!("{} photos, {N_GROUPS} of them groups; facenet-pytorch finds as many", ours.len());
    let middle = median(&mut distances.clone());
    Ok(Findings {
        rows: vec![
            Row::new(SUITE, "detection.same_count", n_same as f64 / ours.len() as f64, "")
                .bar(Bar::AtLeast(0.99))
                .note(note),
            Row::new(SUITE, "detection.iou", mean(overlaps.iter().copied()), "")
                .bar(Bar::AtLeast(0.97))
                .note(format!("mean of {} faces that both found", overlaps.len())),
            Row::new(SUITE, "detection.landmarks_px", mean(distances), "px")
                .bar(Bar::AtMost(1.5))
                .note(format!("median {middle:.2}")),
        ],
        figures: vec![Figure::charts("Landmarks", caption, vec![chart])],
    })
}

/// Composes group photos: some faces on a plain wall, in two rows of four places.
fn groups(faces: &[&Face], folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let places: Vec<(u32, u32)> = (0..8).map(|place| (place % 4, place / 4)).collect();
    let mut files = Vec::new();
    for n in 0..N_GROUPS {
        let colour = [(); 3].map(|()| rng.random_range(90..200));
        let mut wall = RgbImage::from_pixel(960, 640, Rgb(colour));
        let n_faces = rng.random_range(3..8);
        for (column, row) in places.choose_multiple(&mut rng, n_faces) {
            let Some(face) = faces.choose(&mut rng) else { continue };
            let side = rng.random_range(100..220);
            let photo = image::open(&face.path).with_context(|| face.path.display().to_string())?.into_rgb8();
            let photo = imageops::resize(&photo, side, side, imageops::FilterType::CatmullRom);
            imageops::replace(&mut wall, &photo, i64::from(column * 240 + 10), i64::from(row * 320 + 50));
        }
        let file = folder.join(format!("group{n}.png"));
        wall.save(&file)?;
        files.push(file);
    }
    Ok(files)
}

fn edges(face: &v1::FaceReading) -> [f64; 4] {
    let place = face.r#box.unwrap_or_default();
    [place.left, place.top, place.right, place.bottom]
}

/// Computes the intersection over union of two boxes, each with its left, top, right and bottom edge.
fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let area = |c: [f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    width * height / (area(a) + area(b) - width * height)
}

#[cfg(test)]
mod tests {
    use super::iou;

    #[test]
    fn boxes_overlap_by_what_they_share() {
        assert_eq!(iou([0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]), 1.0 / 3.0);
        assert_eq!(iou([0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]), 0.0);
    }
}
