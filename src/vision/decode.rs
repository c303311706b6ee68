//! Decodes a file's bytes into an upright RGB image.

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
    ColourSource, DecodeSize, DecodedImage, ImageError, PhotoNote,
    colour::{inks_to_srgb, to_srgb},
    container::{Format, Whole, chunks_of_png, png_dimensions, segments_of_jpeg},
    foreign::what_is,
    jpeg, orientation,
    png_colour::declared_profile,
};

/// Limits on decoding one image. They are checked against the file's header before the pixels are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// The maximum of width times height.
    pub max_pixels: u64,
    /// The maximum of the bytes held for one image: the decoder's output and the image made from it.
    pub max_alloc_bytes: u64,
}

impl Default for DecodeLimits {
    /// 50 million pixels, more than most phones take, and 512 MiB.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_alloc_bytes: 512 << 20 }
    }
}

/// Decodes a JPEG, PNG or WebP, detected from its bytes, at the wanted size or above.
///
/// A JPEG is reduced by 2, 4 or 8 during decoding, at a fraction of the cost, if the result is still large enough;
/// other formats are decoded in full. The file's orientation is applied. Colours are converted to sRGB by the file's
/// ICC profile or, in a PNG, its other colour chunks; [`DecodedImage::colour`] reports profiles that could not be
/// applied. Other metadata is ignored. Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparency is laid
/// over white. Only the first frame of an animation is read. The same bytes and the same wanted size always yield the
/// same image. A panic inside a decoder is caught and counts as an unreadable image.
/// # Errors
/// [`ImageError::UnsupportedFormat`], [`ImageError::TooLarge`] (before the pixels are allocated), and
/// [`ImageError::Unreadable`] for anything damaged or truncated.
pub fn decode(bytes: &[u8], limits: &DecodeLimits, wanted: DecodeSize) -> Result<DecodedImage, ImageError> {
    let unsupported = || ImageError::UnsupportedFormat { found: what_is(bytes), n_bytes: bytes.len() };
    let format = Format::sniff(bytes).ok_or_else(unsupported)?;
    match catch_unwind(AssertUnwindSafe(|| decode_as(format, bytes, limits, wanted))) {
        Ok(result) => result,
        Err(_) => Err(unreadable(format, "the decoder crashed on it")),
    }
}

fn decode_as(
    format: Format,
    bytes: &[u8],
    limits: &DecodeLimits,
    wanted: DecodeSize,
) -> Result<DecodedImage, ImageError> {
    let whole = || format.whole(bytes).map_err(|missing| unreadable(format, missing));
    // Read only once the size is known to be allowed.
    let orientation = || orientation::of(format, bytes);
    let (image, note) = match format {
        Format::Jpeg => {
            if let Some(why) = unread_coding(bytes) {
                return Err(unreadable(format, why));
            }
            // The header first: a huge image that is also truncated is reported as too large.
            let header = JpegDecoder::new(Cursor::new(bytes)).map_err(|e| unreadable(format, e))?;
            check_size(header.dimensions(), header.color_type().bytes_per_pixel(), limits)?;
            let whole = match format.whole(bytes) {
                Ok(whole) => whole,
                Err(missing) => with_end(bytes, missing, limits)?,
            };
            // A decoder copies the file, which takes measurable time; only a repaired file needs a new one.
            let decoder = match whole.note {
                None => header,
                Some(_) => JpegDecoder::new(Cursor::new(&*whole.bytes)).map_err(|e| unreadable(format, e))?,
            };
            (read_jpeg(decoder, &whole.bytes, orientation(), limits, wanted)?, whole.note)
        }
        Format::Png => {
            let headless = || match chunks_of_png(bytes).next() {
                Some((b"CgBI", _)) => "it is Apple's PNG variant for apps (CgBI); save it as an ordinary PNG",
                _ => "it has no header",
            };
            let dimensions = png_dimensions(bytes).ok_or_else(|| unreadable(format, headless()))?;
            check_size(dimensions, 1, limits)?;
            let mut caps = Limits::default();
            caps.max_alloc = Some(limits.max_alloc_bytes);
            let whole = whole()?;
            let decoder =
                PngDecoder::with_limits(Cursor::new(&*whole.bytes), caps).map_err(|e| unreadable(format, e))?;
            (read(format, decoder, Some(declared_profile(bytes)), orientation(), limits)?, whole.note)
        }
        Format::WebP => {
            let whole = whole()?;
            let decoder = WebPDecoder::new(Cursor::new(&*whole.bytes)).map_err(|e| unreadable(format, e))?;
            (read(format, decoder, None, orientation(), limits)?, whole.note)
        }
    };
    Ok(image.with_note(note))
}

/// Adds an end mark to a JPEG without a proper one, if its pixels are complete; some cameras omit the mark, and some
/// transfers lose it. Decoders would fill missing pixels with grey, so here the pixels are read an extra time, and
/// strictly.
fn with_end<'a>(bytes: &'a [u8], missing: &'static str, limits: &DecodeLimits) -> Result<Whole<'a>, ImageError> {
    let refused = |why: &str| unreadable(Format::Jpeg, why);
    let (layout, end) = jpeg::Layout::read_unended(bytes).map_err(|_| refused(missing))?;
    let full = (layout.width_px(), layout.height_px());
    let divisor = layout.divisor_of_all_bits();
    check_alloc(&layout, divisor, full, limits)
        .map_err(|_| refused("its end mark is missing, and it is too large to check; send the complete file"))?;
    let all = layout.check_every_bit().and_then(|()| layout.decode(divisor).map(drop));
    all.map_err(cut_in_pixels)?;
    let pixels = bytes.get(..end).ok_or_else(|| refused(missing))?;
    Ok(Whole::mended([pixels, &jpeg::END].concat(), PhotoNote::EndMissing))
}

/// Returns the decoded value, or `None` if the crate `image` should try the file.
///
/// # Errors
/// [`ImageError::Unreadable`] if the file is incomplete.
fn unless_cut<T>(decoded: Result<T, jpeg::Setback>) -> Result<Option<T>, ImageError> {
    match decoded {
        Err(why) if why == jpeg::DATA_ENDS_EARLY => Err(cut_in_pixels(why)),
        decoded => Ok(decoded.ok()),
    }
}

fn cut_in_pixels(why: &str) -> ImageError {
    unreadable(Format::Jpeg, format!("some of its pixels are missing: {why}"))
}

/// Explains why a JPEG's coding is not supported: of the standard's many, cameras and browsers use only three.
fn unread_coding(bytes: &[u8]) -> Option<&'static str> {
    segments_of_jpeg(bytes).find_map(|(mark, _)| match mark {
        0xc3 => Some("it uses lossless coding, as medical scanners do; save it as an ordinary JPEG or as PNG"),
        0xc5..=0xc7 | 0xcd..=0xcf => Some("it uses hierarchical coding; save it as an ordinary JPEG"),
        0xc9..=0xcb => Some("it uses arithmetic coding; save it as an ordinary JPEG"),
        0xf7 => Some("it is a JPEG-LS; save it as an ordinary JPEG or as PNG"),
        _ => None,
    })
}

/// Decodes a JPEG with [`jpeg`] if a reduced size is enough or `image` decodes this kind badly. `image` decodes or
/// refuses whatever [`jpeg`] does not support.
fn read_jpeg(
    mut decoder: JpegDecoder<Cursor<&[u8]>>,
    bytes: &[u8],
    orientation: Orientation,
    limits: &DecodeLimits,
    wanted: DecodeSize,
) -> Result<DecodedImage, ImageError> {
    let full = decoder.dimensions();
    let divisor = wanted.divisor(full.0, full.1);
    let Ok(layout) = jpeg::Layout::read(bytes) else {
        return read(Format::Jpeg, decoder, None, orientation, limits);
    };
    layout.check_every_bit().map_err(cut_in_pixels)?;
    if divisor == 1 && !layout.needs_this_decoder() {
        // `image` would fill missing pixels with grey, whatever follows the cut.
        unless_cut(layout.decode(8))?;
        return read(Format::Jpeg, decoder, None, orientation, limits);
    }
    check_alloc(&layout, divisor, full, limits)?;
    let Some(samples) = unless_cut(layout.decode(divisor))? else {
        return read(Format::Jpeg, decoder, None, orientation, limits);
    };
    let profile = profile(&mut decoder, layout.claims_profile);
    let claimed = profile.as_ref().map(Option::as_deref).map_err(String::clone);
    let (rgb, colour) = match samples.channels {
        jpeg::Channels::Cmyk => inks_to_srgb(&samples.bytes, claimed),
        channels => {
            let is_grey = channels == jpeg::Channels::Grey;
            let mut rgb = if is_grey { samples.bytes.iter().flat_map(|&v| [v; 3]).collect() } else { samples.bytes };
            let colour = to_srgb(&mut rgb, is_grey, claimed);
            (rgb, colour)
        }
    };
    let picture = u32::try_from(samples.width_px).ok().zip(u32::try_from(samples.height_px).ok());
    let picture = picture.and_then(|(width, height)| image::RgbImage::from_raw(width, height, rgb));
    finish(
        Format::Jpeg,
        picture.ok_or_else(|| unreadable(Format::Jpeg, "it has no pixels"))?,
        orientation,
        full,
        colour,
    )
}

fn read(
    format: Format,
    mut decoder: impl ImageDecoder,
    declared: Option<Result<Option<Vec<u8>>, String>>,
    orientation: Orientation,
    limits: &DecodeLimits,
) -> Result<DecodedImage, ImageError> {
    let full = decoder.dimensions();
    check_size(full, decoder.color_type().bytes_per_pixel(), limits)?;
    let is_grey = !decoder.color_type().has_color();
    let profile = declared.unwrap_or_else(|| profile(&mut decoder, false));
    let mut caps = Limits::default();
    caps.max_alloc = Some(limits.max_alloc_bytes);
    decoder.set_limits(caps).map_err(|e| unreadable(format, e))?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| unreadable(format, e))?;
    let mut picture = to_rgb(decoded);
    let colour = to_srgb(&mut picture, is_grey, profile.as_ref().map(Option::as_deref).map_err(String::clone));
    finish(format, picture, orientation, full, colour)
}

/// Returns the ICC profile, or an error if there is one that cannot be extracted.
fn profile(decoder: &mut impl ImageDecoder, is_claimed: bool) -> Result<Option<Vec<u8>>, String> {
    match decoder.icc_profile() {
        Ok(None) if is_claimed => Err("parts of it are missing".to_owned()),
        Ok(profile) => Ok(profile),
        Err(e) => Err(e.to_string()),
    }
}

fn finish(
    format: Format,
    picture: image::RgbImage,
    orientation: Orientation,
    (width, height): (u32, u32),
    colour: ColourSource,
) -> Result<DecodedImage, ImageError> {
    let lies = matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    let full = if lies { (height, width) } else { (width, height) };
    if let ColourSource::ProfileIgnored { why } = &colour {
        tracing::debug!(?format, why, "a photo's colour profile is not followed");
    }
    let upright = turn(picture, orientation);
    let (width_px, height_px) = upright.dimensions();
    DecodedImage::from_rgb(width_px, height_px, upright.into_raw())
        .map(|image| image.with_origin(full, colour))
        .ok_or_else(|| unreadable(format, "it has no pixels"))
}

/// The longest side that is decoded, in pixels; JPEG's own limit. Scaling an image one pixel wide and millions long
/// would cost far more than its number of pixels suggests.
const MAX_SIDE_PX: u32 = 65_535;

/// Refuses an image over the limits. Peak memory is the decoder's output and a second image of three bytes a pixel
/// (converted or rotated), so the limit on bytes limits the pixels, too.
fn check_size((width, height): (u32, u32), bytes_per_pixel: u8, limits: &DecodeLimits) -> Result<(), ImageError> {
    let max_pixels = limits.max_pixels.min(limits.max_alloc_bytes / (u64::from(bytes_per_pixel) + 3));
    if u64::from(width) * u64::from(height) > max_pixels || width.max(height) > MAX_SIDE_PX {
        return Err(ImageError::TooLarge { width, height, max_pixels });
    }
    Ok(())
}

/// Refuses a JPEG whose coefficients, channels and images together exceed the limit on bytes.
fn check_alloc(
    layout: &jpeg::Layout<'_>,
    divisor: u32,
    (width, height): (u32, u32),
    limits: &DecodeLimits,
) -> Result<(), ImageError> {
    let n_reduced = u64::from(width.div_ceil(divisor)) * u64::from(height.div_ceil(divisor));
    // The image in RGB, and a second time while it is rotated.
    let n_bytes = layout.alloc_bytes(divisor) + 6 * n_reduced;
    if n_bytes > limits.max_alloc_bytes {
        let n_pixels = u64::from(width) * u64::from(height);
        let max_pixels = u128::from(n_pixels) * u128::from(limits.max_alloc_bytes) / u128::from(n_bytes);
        return Err(ImageError::TooLarge { width, height, max_pixels: max_pixels as u64 });
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

/// Lays an image over white, as a viewer's page would; the colours of transparent pixels are arbitrary, often black.
fn over_white(image: &image::RgbaImage) -> image::RgbImage {
    let mut opaque = image::RgbImage::new(image.width(), image.height());
    for (to, from) in opaque.pixels_mut().zip(image.pixels()) {
        let [colour @ .., alpha] = from.0;
        let alpha = u32::from(alpha);
        // Rounded to nearest; at most 255, so the cast is lossless.
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
mod tests;
