//! Sends mutated images to the live server. Each must get an answer or an error with a reason, and the server must keep
//! its memory, its log and its answers.

use std::{cmp::Reverse, collections::BTreeMap, io::Cursor, path::Path};

use anyhow::Context;
use image::{DynamicImage, GrayImage, ImageFormat};
use jpeg_encoder::{ColorType, Encoder};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use visage::{
    cli::{failure, wording},
    proto::v1,
};

use super::{
    Findings, SUITE, Setup,
    predicting::{PhotoResult, label, predict_all, regression},
};
use crate::{
    eval::page::Figure,
    evidence::{Bar, Row},
};

const N_PICTURES: usize = 5000;
/// The server's memory is measured after every so many images.
const N_AT_ONCE: usize = 250;
/// The number of the folder's photos to mutate.
const N_PHOTOS: usize = 8;
/// The server's memory may grow by this many MiB. The limits of one decoding allow more.
const MAX_GROWTH_MIB: f64 = 256.0;
/// Two answers to one photo may differ by this much.
const MAX_ROUNDING_YEARS: f64 = 0.001;
/// The side in pixels of a grey image that compresses to almost nothing.
const BOMB_PX: u32 = 12_000;

/// Runs the part.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let photos: Vec<_> = setup.table.faces.iter().take(N_PHOTOS).map(|face| face.path.clone()).collect();
    let seeds = seeds(&photos)?;
    let (bomb, strange) = (bomb()?, strange());
    let request = v1::PredictRequest::default;
    let before = predict_all(&mut setup.server.clients, photos.clone(), request(), "whole photos before").await?;
    let at_first = setup.server.resident_mib()?;
    let errors_before = setup.server.n_error_lines()?;

    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut peak, mut outcomes) = (at_first, BTreeMap::<String, usize>::new());
    for start in (0..N_PICTURES).step_by(N_AT_ONCE) {
        let folder: TempDir = tempfile::tempdir().context("a temporary folder")?;
        let mut files = Vec::new();
        for i in start..(start + N_AT_ONCE).min(N_PICTURES) {
            let picture = match i % 50 {
                0 => bomb.clone(),
                1 => strange.choose(&mut rng).cloned().unwrap_or_default(),
                _ => mutated(&seeds, &mut rng),
            };
            files.push(folder.path().join(i.to_string()));
            std::fs::write(folder.path().join(i.to_string()), picture)?;
        }
        for answer in predict_all(&mut setup.server.clients, files, request(), "mutated pictures").await? {
            *outcomes.entry(outcome(&answer)).or_default() += 1;
        }
        peak = peak.max(setup.server.resident_mib()?);
    }
    let after = predict_all(&mut setup.server.clients, photos, request(), "whole photos after").await?;
    let n_changed = before.iter().zip(&after).filter(|(a, b)| !is_alike(a, b)).count();
    let n_untyped = outcomes.get(UNTYPED).copied().unwrap_or(0);
    let n_errors = setup.server.n_error_lines()? - errors_before;
    let n_answered: usize = outcomes.values().sum();
    let note = format!("{n_answered} pictures; the server is the same process as before");
    let rows = vec![
        Row::new(SUITE, "hostile.untyped", n_untyped as f64, "").bar(Bar::AtMost(0.0)).note(note),
        Row::new(SUITE, "hostile.memory_growth", peak - at_first, "MiB")
            .bar(Bar::AtMost(MAX_GROWTH_MIB))
            .note(format!("from {at_first:.0} MiB")),
        Row::new(SUITE, "hostile.error_lines", n_errors as f64, "").bar(Bar::AtMost(0.0)).note("in the server's log"),
        Row::new(SUITE, "hostile.changed_answers", n_changed as f64, "")
            .bar(Bar::AtMost(0.0))
            .note(format!("of {} whole photos, before and after", before.len())),
    ];
    let mut outcomes: Vec<(String, usize)> = outcomes.into_iter().collect();
    outcomes.sort_by_key(|(_, n)| Reverse(*n));
    let table = outcomes.into_iter().map(|(what, n)| vec![what, n.to_string()]).collect();
    let caption = "Bits flipped, cut short, spliced, sizes in headers made huge, one format's head on another's body, a \
                   bomb, formats that are not read.";
    let figure = Figure::table("What became of mutated pictures", caption, vec!["outcome", "pictures"], table);
    Ok(Findings { rows, figures: vec![figure] })
}

const UNTYPED: &str = "no reason";

fn outcome(answer: &PhotoResult) -> String {
    match answer {
        Ok(response) if response.abstained => {
            let reasons: Vec<String> = response.abstention_reasons().map(wording::reason).collect();
            if reasons.is_empty() { UNTYPED.to_owned() } else { format!("not answered: {}", reasons.join(", ")) }
        }
        Ok(_) => "answered".to_owned(),
        Err(error) if error.details.is_empty() => UNTYPED.to_owned(),
        Err(error) => failure::reason_of(error),
    }
}

/// Compares two answers; the rounding of another batch does not count.
fn is_alike(a: &PhotoResult, b: &PhotoResult) -> bool {
    let (Ok(a), Ok(b)) = (a, b) else { return false };
    let age = |answer: &v1::PredictResponse| regression(answer, "age").map(|r| r.value);
    let is_near = match (age(a), age(b)) {
        (Some(a), Some(b)) => (a - b).abs() < MAX_ROUNDING_YEARS,
        (a, b) => a == b,
    };
    is_near && label(a, "gender") == label(b, "gender") && a.abstention_reasons == b.abstention_reasons
}

/// Reads photos, and also encodes each in other formats.
fn seeds(photos: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for path in photos {
        let bytes = std::fs::read(path).with_context(|| path.as_ref().display().to_string())?;
        let image = image::load_from_memory(&bytes)?;
        for (form, format) in [
            (image.to_rgb8().into(), ImageFormat::Png),
            (DynamicImage::from(image.to_rgba16()), ImageFormat::Png),
            (image.to_luma8().into(), ImageFormat::Png),
            (image.to_rgb8().into(), ImageFormat::WebP),
            (image.to_luma8().into(), ImageFormat::Jpeg),
        ] {
            let mut encoded = Cursor::new(Vec::new());
            form.write_to(&mut encoded, format)?;
            seeds.push(encoded.into_inner());
        }
        let (rgb, mut progressive, mut inked) = (image.to_rgb8(), Vec::new(), Vec::new());
        let (width, height) = (u16::try_from(rgb.width())?, u16::try_from(rgb.height())?);
        let mut encoder = Encoder::new(&mut progressive, 85);
        encoder.set_progressive_scans(6);
        encoder.encode(&rgb, width, height, ColorType::Rgb)?;
        let cmyk: Vec<u8> = rgb.pixels().flat_map(|p| [255 - p[0], 255 - p[1], 255 - p[2], 0]).collect();
        Encoder::new(&mut inked, 85).encode(&cmyk, width, height, ColorType::Cmyk)?;
        seeds.extend([bytes, progressive, inked]);
    }
    Ok(seeds)
}

/// Creates a PNG of a hundred and some kilobytes with a hundred and some megapixels.
fn bomb() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    GrayImage::new(BOMB_PX, BOMB_PX).write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// Creates the beginnings of files in unsupported formats, and an empty file.
fn strange() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 8] = [
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00",
        b"BM\x3a\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00",
        b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00",
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"",
    ];
    heads.into_iter().map(|head| [head, &[0; 64][..head.len().min(64)]].concat()).collect()
}

/// Mutates a seed in one of six ways.
fn mutated(seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let (Some(seed), Some(other)) = (seeds.choose(rng), seeds.choose(rng)) else { return Vec::new() };
    let mut picture = seed.clone();
    let at = rng.random_range(0..picture.len());
    match rng.random_range(0..6) {
        0 => {
            for _ in 0..rng.random_range(1..20) {
                let at = rng.random_range(0..picture.len());
                picture[at] ^= 1 << rng.random_range(0..8);
            }
        }
        1 => picture.truncate(at),
        2 => {
            picture.truncate(at);
            picture.extend_from_slice(&other[rng.random_range(0..other.len())..]);
        }
        3 => {
            // Every header has its sizes near the start.
            let at = rng.random_range(0..picture.len().min(200));
            for (byte, lie) in picture.iter_mut().skip(at).zip([0xff, 0xff, 0xff, 0xf0]) {
                *byte = lie;
            }
        }
        4 => {
            let n = picture.len().min(other.len()).min(16);
            picture[..n].copy_from_slice(&other[..n]);
        }
        _ => {
            let noise: Vec<u8> = (0..rng.random_range(1..2000)).map(|_| rng.random()).collect();
            picture.splice(at..at, noise);
        }
    }
    if picture == *seed {
        // Flips the byte also where both have the same head.
        picture[at] ^= 0xff;
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_spoilt_in_the_same_way_each_time() {
        let seeds: [Vec<u8>; 2] = [(0..400).map(|i| i as u8).collect(), (0..300).map(|i| (i * 7) as u8).collect()];
        let spoil = || {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            (0..100).map(|_| mutated(&seeds, &mut rng)).collect::<Vec<_>>()
        };
        let pictures = spoil();
        assert_eq!(pictures, spoil());
        assert!(!pictures.iter().any(|picture| seeds.contains(picture)));
    }
}
