//! What a photo costs before the network sees it, beside what it costs with the `image` crate alone.

#![expect(missing_docs, reason = "criterion's macros make public functions without any")]
#![expect(clippy::expect_used, reason = "the fixture is a photo, and so is what is made of it")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::*};
use image::imageops;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use visage::vision::{DecodeLimits, DecodedImage, Wanted, decode, decode_square, to_pixels};

const PORTRAIT: &[u8] = include_bytes!("../tests/fixtures/portrait.jpg");

/// Twelve megapixels, as phones take.
const WIDTH_PX: u16 = 4032;
const HEIGHT_PX: u16 = 3024;

fn pixels(c: &mut Criterion) {
    let limits = DecodeLimits::default();
    let image = decode(PORTRAIT, &limits, Wanted::Full).expect("the fixture is a photo");
    let size = format!("{} x {}", image.width_px(), image.height_px());
    c.bench_function(&format!("decode a JPEG of {size}"), |b| {
        b.iter(|| decode(black_box(PORTRAIT), &limits, Wanted::Full));
    });
    c.bench_function(&format!("{size} to 224 px"), |b| b.iter(|| to_pixels(black_box(&image), 224)));
}

/// The pairs to compare: the same bytes to a picture of the same size. The bar is 0.35 of `image`'s time.
fn large(c: &mut Criterion) {
    let limits = DecodeLimits::default();
    for (name, n_scans) in [("12 MP", 0), ("12 MP, progressive", 4)] {
        let photo = twelve_megapixels(n_scans);
        let mut group = c.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(4));
        group.bench_function("bytes to 640 x 480", |b| {
            b.iter(|| {
                let image = decode(black_box(&photo), &limits, Wanted::LongSide(640)).expect("a photo");
                resize(&image, 640, 480)
            });
        });
        group.bench_function("bytes to 640 x 480 with image", |b| b.iter(|| with_image(black_box(&photo), 640, 480)));
        group.bench_function("bytes to 224 x 224", |b| b.iter(|| decode_square(black_box(&photo), &limits, 224)));
        group.bench_function("bytes to 224 x 224 with image", |b| b.iter(|| with_image(black_box(&photo), 224, 224)));
        group.finish();
    }
}

fn with_image(photo: &[u8], width: u32, height: u32) -> image::DynamicImage {
    let image = image::load_from_memory(photo).expect("a photo");
    image.resize_exact(width, height, imageops::FilterType::Triangle)
}

/// The whole picture scaled by the filter that `to_pixels` uses.
fn resize(image: &DecodedImage, width: u32, height: u32) -> Vec<u8> {
    let mut to = Image::new(width, height, PixelType::U8x3);
    let from = ImageRef::new(image.width_px(), image.height_px(), image.rgb(), PixelType::U8x3).expect("a picture");
    let bilinear = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&from, &mut to, &bilinear).expect("equal pixel types");
    to.into_vec()
}

/// The portrait enlarged, with the noise of a sensor, compressed as a phone would: quality 90, colours at half the
/// resolution.
fn twelve_megapixels(n_scans: u8) -> Vec<u8> {
    let portrait = image::load_from_memory(PORTRAIT).expect("the fixture is a photo").into_rgb8();
    let (width, height) = (u32::from(WIDTH_PX), u32::from(HEIGHT_PX));
    let mut large = imageops::resize(&portrait, width, height, imageops::FilterType::CatmullRom);
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
    encoder.encode(&large, WIDTH_PX, HEIGHT_PX, ColorType::Rgb).expect("it fits a JPEG");
    bytes
}

criterion_group!(benches, pixels, large);
criterion_main!(benches);
