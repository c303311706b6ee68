//! From a file's bytes to an upright RGB picture.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    DynamicImage, ImageDecoder, Limits,
    codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};

use super::{
    ImageError,
    container::{Format, png_dimensions},
};

/// What decoding one image may cost. Checked against the file's header before memory is taken for its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Cap on width times height.
    pub max_pixels: u64,
    /// Cap on the bytes held for one image: the decoder's output and the picture made from it.
    pub max_alloc_bytes: u64,
}

impl Default for DecodeLimits {
    /// 50 million pixels, more than most phones take, and 512 MiB.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_alloc_bytes: 512 << 20 }
    }
}

/// A decoded photo, upright, 8 bits a channel. Both sides are at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedImage {
    width_px: u32,
    height_px: u32,
    rgb: Vec<u8>,
}

impl DecodedImage {
    /// A picture from rows of interleaved RGB; nothing when a side is zero or the bytes are not
    /// `width_px * height_px * 3`.
    #[must_use]
    pub fn from_rgb(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Option<Self> {
        let n_bytes = u64::from(width_px).checked_mul(u64::from(height_px))?.checked_mul(3)?;
        (n_bytes > 0 && n_bytes == rgb.len() as u64).then_some(Self { width_px, height_px, rgb })
    }

    /// Width after orientation, in pixels.
    #[must_use]
    pub fn width_px(&self) -> u32 {
        self.width_px
    }

    /// Height after orientation, in pixels.
    #[must_use]
    pub fn height_px(&self) -> u32 {
        self.height_px
    }

    /// Rows from the top, RGB interleaved.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

/// Decodes a JPEG, PNG or WebP, told apart by its bytes.
///
/// EXIF orientation is applied; other metadata, colour profiles included, is not. Grey, palette, CMYK and 16-bit images
/// become 8-bit RGB; transparency is laid over white. Of an animation the first frame is read. The same bytes always
/// give the same picture. A panic inside a decoder is contained and counts as an unreadable image.
///
/// # Errors
/// [`ImageError::UnsupportedFormat`], [`ImageError::TooLarge`] (before memory is taken for the pixels), and
/// [`ImageError::Unreadable`] for anything damaged or cut short.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<DecodedImage, ImageError> {
    let format = Format::sniff(bytes).ok_or(ImageError::UnsupportedFormat { n_bytes: bytes.len() })?;
    match catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits))) {
        Ok(result) => result,
        Err(_) => Err(unreadable(format, "the decoder gave up on it")),
    }
}

fn decode_as(format: Format, bytes: &[u8], limits: &DecodeLimits) -> Result<DecodedImage, ImageError> {
    let whole = |bytes| Format::whole(format, bytes).map_err(|missing| unreadable(format, missing));
    match format {
        Format::Jpeg => {
            // The header first: a huge image that is also cut short is answered as huge.
            let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(|e| unreadable(format, e))?;
            check_size(decoder.dimensions(), decoder.color_type().bytes_per_pixel(), limits)?;
            whole(bytes)?;
            read(format, decoder, limits)
        }
        Format::Png => {
            let dimensions = png_dimensions(bytes).ok_or_else(|| unreadable(format, "it has no header"))?;
            check_size(dimensions, 1, limits)?;
            let mut caps = Limits::default();
            caps.max_alloc = Some(limits.max_alloc_bytes);
            let decoder =
                PngDecoder::with_limits(Cursor::new(whole(bytes)?), caps).map_err(|e| unreadable(format, e))?;
            read(format, decoder, limits)
        }
        Format::WebP => {
            let decoder = WebPDecoder::new(Cursor::new(whole(bytes)?)).map_err(|e| unreadable(format, e))?;
            read(format, decoder, limits)
        }
    }
}

fn read(format: Format, mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<DecodedImage, ImageError> {
    check_size(decoder.dimensions(), decoder.color_type().bytes_per_pixel(), limits)?;
    let orientation = decoder.orientation().map_err(|e| unreadable(format, e))?;
    let mut caps = Limits::default();
    caps.max_alloc = Some(limits.max_alloc_bytes);
    decoder.set_limits(caps).map_err(|e| unreadable(format, e))?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| unreadable(format, e))?;
    let upright = turn(to_rgb(decoded), orientation);
    let (width_px, height_px) = upright.dimensions();
    DecodedImage::from_rgb(width_px, height_px, upright.into_raw())
        .ok_or_else(|| unreadable(format, "it has no pixels"))
}

/// Refuses what is over the caps. The memory held at the peak is the decoder's output and a second picture of three
/// bytes a pixel (converted or turned), so the cap on bytes is a cap on pixels, too.
fn check_size((width, height): (u32, u32), bytes_per_pixel: u8, limits: &DecodeLimits) -> Result<(), ImageError> {
    let max_pixels = limits.max_pixels.min(limits.max_alloc_bytes / (u64::from(bytes_per_pixel) + 3));
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooLarge { width, height, max_pixels });
    }
    Ok(())
}

fn to_rgb(image: DynamicImage) -> image::RgbImage {
    match image {
        DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgba8(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgba16(_) => over_white(&image.into_rgba8()),
        opaque => opaque.into_rgb8(),
    }
}

/// Lays a picture over white, as a viewer's page would; what lies under transparent pixels is arbitrary, often black.
fn over_white(image: &image::RgbaImage) -> image::RgbImage {
    let mut opaque = image::RgbImage::new(image.width(), image.height());
    for (to, from) in opaque.pixels_mut().zip(image.pixels()) {
        let [colour @ .., alpha] = from.0;
        let alpha = u32::from(alpha);
        // Rounded to nearest; at most 255, so the cast loses nothing.
        to.0 = colour.map(|c| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    opaque
}

fn turn(image: image::RgbImage, orientation: Orientation) -> image::RgbImage {
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

fn unreadable(format: Format, detail: impl ToString) -> ImageError {
    ImageError::Unreadable { format: format.name(), detail: detail.to_string() }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
