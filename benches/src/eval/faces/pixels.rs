//! Times a photo of twelve megapixels from its bytes to a network's input, beside the `image` crate.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use image::{DynamicImage, RgbImage, imageops};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde::Serialize;
use visage::{
    cli::output,
    nn::golden_input,
    vision::{DecodeLimits, DecodeSize, DecodedImage, decode, decode_square},
};

use super::{Findings, SUITE, Setup};
use crate::evidence::{Bar, Row};

/// The width in pixels of a phone's photo.
const WIDTH_PX: u16 = 4032;
const HEIGHT_PX: u16 = 3024;
/// The side in pixels of the drawn image from which the photo is enlarged.
const DRAWN_PX: u32 = 320;
/// How often both sides are timed, alternating; the least time of each counts.
const N_ROUNDS: usize = 15;

/// Requests a photo from a peer, encoded as web sites do.
#[derive(Serialize)]
struct RefinedRequest<'a> {
    image: &'a Path,
    out: &'a Path,
}

/// Runs the part on its own thread.
pub(super) async fn measure(setup: &Setup<'_>) -> anyhow::Result<Findings> {
    let mut photos = vec![("baseline", twelve_megapixels(0)?), ("progressive", twelve_megapixels(4)?)];
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let (image, out) = (folder.path().join("baseline.jpg"), folder.path().join("refined.jpg"));
    std::fs::write(&image, &photos[0].1)?;
    let request = RefinedRequest { image: &image, out: &out };
    let what = ("a progressive photo with refinements", 1);
    if setup.peers.run_script::<serde_json::Value>("peers/faces.py", &["refined"], &request, what).await?.is_some() {
        photos.push(("refined", std::fs::read(&out)?));
    }
    let rows = tokio::task::spawn_blocking(move || rows(&photos)).await??;
    Ok(Findings { rows, figures: Vec::new() })
}

fn rows(photos: &[(&str, Vec<u8>)]) -> anyhow::Result<Vec<Row>> {
    let limits = DecodeLimits::default();
    let mut rows = Vec::new();
    let progress = output::bar((2 * photos.len() * N_ROUNDS) as u64, "twelve megapixels");
    for (kind, photo) in photos {
        let landscape = || -> anyhow::Result<()> {
            let image = decode(black_box(photo), &limits, DecodeSize::LongSide(640))?;
            black_box(resized(&image, 640, 480)?);
            Ok(())
        };
        let square = || -> anyhow::Result<()> {
            black_box(decode_square(black_box(photo), &limits, 224)?);
            Ok(())
        };
        type Way<'a> = &'a dyn Fn() -> anyhow::Result<()>;
        let sizes: [(&str, (u32, u32), Way); 2] =
            [("640x480", (640, 480), &landscape), ("224x224", (224, 224), &square)];
        for (size, (width, height), ours) in sizes {
            let (mut least, mut least_theirs) = (Duration::MAX, Duration::MAX);
            for _ in 0..N_ROUNDS {
                least = least.min(timed(ours)?);
                least_theirs = least_theirs.min(timed(&|| {
                    black_box(with_image(black_box(photo), width, height)?);
                    Ok(())
                })?);
                progress.inc(1);
            }
            rows.push(
                Row::new(SUITE, format!("pixels.12mp.{kind}.{size}"), least.as_secs_f64() * 1e3, "ms")
                    .versus("image, full decode and resize", least_theirs.as_secs_f64() * 1e3)
                    .bar(Bar::AtMost(0.35))
                    .note(format!("least of {N_ROUNDS} by turns")),
            );
        }
    }
    progress.finish_and_clear();
    Ok(rows)
}

fn timed(work: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn with_image(photo: &[u8], width: u32, height: u32) -> anyhow::Result<DynamicImage> {
    Ok(image::load_from_memory(photo)?.resize_exact(width, height, imageops::FilterType::Triangle))
}

/// Scales the whole image by the filter used for decoding to a square.
fn resized(image: &DecodedImage, width: u32, height: u32) -> anyhow::Result<Vec<u8>> {
    let mut to = images::Image::new(width, height, PixelType::U8x3);
    let from = images::ImageRef::new(image.width_px(), image.height_px(), image.rgb(), PixelType::U8x3)?;
    let bilinear = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&from, &mut to, &bilinear)?;
    Ok(to.into_vec())
}

/// Enlarges a drawn image, adds a sensor's noise, and compresses it like a phone: quality 90, colours at half the
/// resolution.
fn twelve_megapixels(n_scans: u8) -> anyhow::Result<Vec<u8>> {
    let drawn =
        RgbImage::from_raw(DRAWN_PX, DRAWN_PX, golden_input(1, DRAWN_PX)).context("a square of three channels")?;
    let (width, height) = (u32::from(WIDTH_PX), u32::from(HEIGHT_PX));
    let mut large = imageops::resize(&drawn, width, height, imageops::FilterType::CatmullRom);
    let mut state = 1u64;
    for pixel in large.pixels_mut() {
        // Four bytes of a generator's state make one value that is close to normally distributed.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let sum: i32 = state.to_be_bytes()[..4].iter().map(|&byte| i32::from(byte)).sum();
        let noise = (sum - 510) / 37;
        pixel.0 = pixel.0.map(|value| (i32::from(value) + noise).clamp(0, 255) as u8);
    }
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    if n_scans > 0 {
        encoder.set_progressive_scans(n_scans);
    }
    encoder.encode(&large, WIDTH_PX, HEIGHT_PX, ColorType::Rgb)?;
    Ok(bytes)
}
