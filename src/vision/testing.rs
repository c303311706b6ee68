//! Images made for tests.

use image::{ExtendedColorType, ImageEncoder, codecs::*};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::DecodedImage;

pub(super) const PORTRAIT: &[u8] = include_bytes!("../../tests/fixtures/portrait.jpg");
pub(super) const RED: [u8; 3] = [255, 0, 0];
pub(super) const GREEN: [u8; 3] = [0, 255, 0];
pub(super) const BLUE: [u8; 3] = [0, 0, 255];
pub(super) const GREY: [u8; 3] = [128, 128, 128];

#[derive(Clone, Copy, Debug)]
pub(super) enum As {
    Jpeg,
    Png,
    WebP,
}

pub(super) fn encode(
    format: As,
    (width, height): (u32, u32),
    pixels: &[u8],
    colour: ExtendedColorType,
    exif: &[u8],
) -> Vec<u8> {
    fn write(mut encoder: impl ImageEncoder, exif: &[u8], pixels: &[u8], size: (u32, u32), colour: ExtendedColorType) {
        if !exif.is_empty() {
            encoder.set_exif_metadata(exif.to_vec()).unwrap();
        }
        encoder.write_image(pixels, size.0, size.1, colour).unwrap();
    }
    let mut out = Vec::new();
    match format {
        As::Jpeg => {
            write(jpeg::JpegEncoder::new_with_quality(&mut out, 95), exif, pixels, (width, height), colour);
        }
        As::Png => write(png::PngEncoder::new(&mut out), exif, pixels, (width, height), colour),
        As::WebP => write(webp::WebPEncoder::new_lossless(&mut out), exif, pixels, (width, height), colour),
    }
    out
}

/// Quadrants red, green (top), blue, grey (bottom).
pub(super) fn quadrants(width: u32, height: u32) -> Vec<u8> {
    let colour = |x, y| match (x < width / 2, y < height / 2) {
        (true, true) => RED,
        (false, true) => GREEN,
        (true, false) => BLUE,
        (false, false) => GREY,
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| colour(x, y))).collect()
}

/// The smallest EXIF block: one entry, the orientation.
pub(super) fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    block.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    block
}

/// Returns the colours of the four quadrants, from the top left in reading order.
pub(super) fn seen(image: &DecodedImage) -> [[u8; 3]; 4] {
    let (width, height) = (image.width_px() as usize, image.height_px() as usize);
    let at = |x: usize, y: usize| {
        let pixel = &image.rgb()[(y * width + x) * 3..][..3];
        let distance = |c: &[u8; 3]| c.iter().zip(pixel).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>();
        [RED, GREEN, BLUE, GREY].into_iter().min_by_key(|c| distance(c)).unwrap()
    };
    [
        at(width / 4, height / 4),
        at(width * 3 / 4, height / 4),
        at(width / 4, height * 3 / 4),
        at(width * 3 / 4, height * 3 / 4),
    ]
}

/// The encoder's settings for a JPEG.
#[derive(Clone, Copy, Debug)]
pub(super) struct JpegForm {
    pub(super) sampling: SamplingFactor,
    /// The number of scans; 0: not progressive.
    pub(super) n_scans: u8,
    pub(super) restart_interval: u16,
    pub(super) optimised: bool,
    pub(super) colour: ColorType,
}

impl Default for JpegForm {
    fn default() -> Self {
        Self {
            sampling: SamplingFactor::F_2_2,
            n_scans: 0,
            restart_interval: 0,
            optimised: false,
            colour: ColorType::Rgb,
        }
    }
}

/// Encodes a JPEG with an EXIF orientation and a colour profile, unless they are empty.
pub(super) fn jpeg(form: JpegForm, (width, height): (u32, u32), pixels: &[u8], exif: &[u8], icc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, 92);
    encoder.set_sampling_factor(form.sampling);
    if form.n_scans > 0 {
        encoder.set_progressive_scans(form.n_scans);
    }
    if form.restart_interval > 0 {
        encoder.set_restart_interval(form.restart_interval);
    }
    encoder.set_optimized_huffman_tables(form.optimised);
    if !exif.is_empty() {
        encoder.add_exif_metadata(exif).unwrap();
    }
    if !icc.is_empty() {
        encoder.add_icc_profile(icc).unwrap();
    }
    encoder.encode(pixels, width as u16, height as u16, form.colour).unwrap();
    out
}

/// A part of a photo, of at most 320 pixels a side.
pub(super) fn photo(width: u32, height: u32) -> Vec<u8> {
    let portrait = image::load_from_memory(PORTRAIT).unwrap().into_rgb8();
    image::imageops::crop_imm(&portrait, (320 - width) / 2, (320 - height) / 2, width, height).to_image().into_raw()
}

/// The mean of every `divisor` by `divisor` pixels, or of as many as there are at the right and the bottom.
pub(super) fn boxed((width, height): (usize, usize), n_channels: usize, pixels: &[u8], divisor: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for y in (0..height).step_by(divisor) {
        for x in (0..width).step_by(divisor) {
            for channel in 0..n_channels {
                let (rows, columns) = (y..height.min(y + divisor), x..width.min(x + divisor));
                let all = rows.flat_map(|y| columns.clone().map(move |x| (y * width + x) * n_channels + channel));
                let (sum, n) = all.fold((0, 0), |(sum, n), at| (sum + usize::from(pixels[at]), n + 1));
                out.push(((sum + n / 2) / n) as u8);
            }
        }
    }
    out
}

/// The mean distance of two images' values.
pub(super) fn distance(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}
