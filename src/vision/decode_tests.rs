//! Decoding: formats, colours, orientation, caps, damage.

use image::{ExtendedColorType, ImageEncoder, codecs::*};
use proptest::prelude::*;

use super::*;

const PORTRAIT: &[u8] = include_bytes!("../../tests/fixtures/portrait.jpg");
const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const GREY: [u8; 3] = [128, 128, 128];

#[derive(Clone, Copy, Debug)]
enum As {
    Jpeg,
    Png,
    WebP,
}

fn encode(format: As, (width, height): (u32, u32), pixels: &[u8], colour: ExtendedColorType, exif: &[u8]) -> Vec<u8> {
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
fn quadrants(width: u32, height: u32) -> Vec<u8> {
    let colour = |x, y| match (x < width / 2, y < height / 2) {
        (true, true) => RED,
        (false, true) => GREEN,
        (true, false) => BLUE,
        (false, false) => GREY,
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| colour(x, y))).collect()
}

/// The smallest EXIF block: one entry, the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    block.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    block
}

/// Which of the four colours the quadrants have, from the top left in reading order.
fn seen(image: &DecodedImage) -> [[u8; 3]; 4] {
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

fn decode_default(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    decode(bytes, &DecodeLimits::default())
}

#[test]
fn reads_a_portrait() {
    let image = decode_default(PORTRAIT).unwrap();
    assert_eq!((image.width_px(), image.height_px()), (320, 320));
    assert_eq!(image, decode_default(PORTRAIT).unwrap());
    // The suit is orange: more red than blue in the lower quarter's middle.
    let pixel = &image.rgb()[(300 * 320 + 120) * 3..][..3];
    assert!(pixel[0] > 150 && pixel[2] < 100, "{pixel:?}");
}

#[test]
fn every_format_and_orientation_comes_out_upright() {
    // Where EXIF 2.3 says the stored rows and columns belong.
    let upright: [[[u8; 3]; 4]; 8] = [
        [RED, GREEN, BLUE, GREY],
        [GREEN, RED, GREY, BLUE],
        [GREY, BLUE, GREEN, RED],
        [BLUE, GREY, RED, GREEN],
        [RED, BLUE, GREEN, GREY],
        [BLUE, RED, GREY, GREEN],
        [GREY, GREEN, BLUE, RED],
        [GREEN, GREY, RED, BLUE],
    ];
    for format in [As::Jpeg, As::Png, As::WebP] {
        for (orientation, expected) in (1u8..).zip(upright) {
            let bytes = encode(format, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &exif(orientation));
            let image = decode_default(&bytes).unwrap();
            let size = if orientation < 5 { (48, 32) } else { (32, 48) };
            assert_eq!((image.width_px(), image.height_px()), size, "{format:?} {orientation}");
            assert_eq!(seen(&image), expected, "{format:?} {orientation}");
        }
    }
}

#[test]
fn nonsense_in_exif_leaves_the_picture_as_it_is() {
    for block in [exif(0), exif(9), b"II*\0\xff\xff\xff\xff".to_vec(), vec![7; 5]] {
        let bytes = encode(As::Jpeg, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &block);
        assert_eq!(seen(&decode_default(&bytes).unwrap()), [RED, GREEN, BLUE, GREY]);
    }
}

#[test]
fn other_colours_become_rgb() {
    let grey = encode(As::Jpeg, (16, 16), &[77; 256], ExtendedColorType::L8, &[]);
    assert!(decode_default(&grey).unwrap().rgb().iter().all(|v| v.abs_diff(77) <= 1));
    let grey_png = encode(As::Png, (2, 1), &[3, 250], ExtendedColorType::L8, &[]);
    assert_eq!(decode_default(&grey_png).unwrap().rgb(), [3, 3, 3, 250, 250, 250]);
    let deep: Vec<u8> = [0x8000u16, 0xffff, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let deep = encode(As::Png, (1, 1), &deep, ExtendedColorType::Rgb16, &[]);
    assert_eq!(decode_default(&deep).unwrap().rgb(), [128, 255, 0]);
}

#[test]
fn transparency_is_laid_over_white() {
    let pixels = [0, 0, 0, 0, 200, 100, 0, 255, 0, 0, 255, 128];
    for format in [As::Png, As::WebP] {
        let bytes = encode(format, (3, 1), &pixels, ExtendedColorType::Rgba8, &[]);
        assert_eq!(decode_default(&bytes).unwrap().rgb(), [255, 255, 255, 200, 100, 0, 127, 127, 255], "{format:?}");
    }
}

#[test]
fn other_bytes_are_no_image() {
    for bytes in [&b""[..], b"\xff\xd8", b"hello, this is text", b"GIF89a\x01\0\x01\0", b"RIFF\x04\0\0\0WAVE", b"BM"] {
        assert_eq!(decode_default(bytes), Err(ImageError::UnsupportedFormat { n_bytes: bytes.len() }));
    }
}

#[test]
fn every_cut_is_noticed() {
    for format in [As::Jpeg, As::Png, As::WebP] {
        let bytes = encode(format, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &exif(6));
        for n_bytes in 12..bytes.len() {
            let result = decode_default(&bytes[..n_bytes]);
            assert!(matches!(result, Err(ImageError::Unreadable { .. })), "{format:?} at {n_bytes}: {result:?}");
        }
        // What trails the image is not part of it.
        let mut trailed = bytes.clone();
        trailed.extend(b"maker's notes \xff\xd8\xff");
        assert_eq!(decode_default(&trailed), decode_default(&bytes), "{format:?}");
    }
    assert!(matches!(decode_default(&PORTRAIT[..PORTRAIT.len() / 2]), Err(ImageError::Unreadable { .. })));
}

#[test]
fn the_header_is_checked_before_memory_is_taken() {
    let limits = DecodeLimits { max_pixels: 48 * 32 - 1, max_alloc_bytes: 1 << 30 };
    for format in [As::Jpeg, As::Png, As::WebP] {
        let bytes = encode(format, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &[]);
        let refused = Err(ImageError::TooLarge { width: 48, height: 32, max_pixels: 48 * 32 - 1 });
        assert_eq!(decode(&bytes, &limits), refused, "{format:?}");
        assert!(decode(&bytes, &DecodeLimits { max_pixels: 48 * 32, ..limits }).is_ok(), "{format:?}");
        let few_bytes = decode(&bytes, &DecodeLimits { max_alloc_bytes: 48 * 32 * 3, ..DecodeLimits::default() });
        assert!(
            matches!(few_bytes, Err(ImageError::TooLarge { max_pixels, .. }) if max_pixels < 48 * 32),
            "{format:?}"
        );
    }
    // A thousand million pixels in a header of a few bytes, with nothing behind it.
    let mut png = encode(As::Png, (1, 1), &[0], ExtendedColorType::L8, &[]);
    png[16..24].copy_from_slice(&[0, 0, 0x7a, 0x12, 0, 0, 0x80, 0]);
    assert!(matches!(decode_default(&png[..33]), Err(ImageError::TooLarge { width: 31250, height: 32768, .. })));
    let mut jpeg = encode(As::Jpeg, (16, 16), &[0; 256], ExtendedColorType::L8, &[]);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x80, 0, 0x7a, 0x12]);
    assert!(matches!(decode_default(&jpeg), Err(ImageError::TooLarge { width: 31250, height: 32768, .. })));
}

#[test]
fn a_chunk_that_claims_gigabytes_is_refused() {
    let mut bytes = encode(As::WebP, (8, 8), &[9; 192], ExtendedColorType::Rgb8, &exif(1));
    let at = bytes.windows(4).position(|w| w == b"EXIF").unwrap();
    bytes[at + 4..at + 8].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    assert!(matches!(decode_default(&bytes), Err(ImageError::Unreadable { format: "WebP", .. })));
}

fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<_> = [As::Jpeg, As::Png, As::WebP]
        .into_iter()
        .map(|format| encode(format, (24, 16), &quadrants(24, 16), ExtendedColorType::Rgb8, &exif(8)))
        .collect();
    samples.push(encode(As::Png, (5, 3), &[90; 60], ExtendedColorType::Rgba8, &[]));
    samples.push(encode(As::WebP, (5, 3), &[90; 60], ExtendedColorType::Rgba8, &[]));
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_images_never_panic(
        sample in 0..5usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let mut bytes = samples().swap_remove(sample);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = DecodeLimits { max_pixels: 1 << 20, max_alloc_bytes: 16 << 20 };
        if let Ok(image) = decode(&bytes, &limits) {
            prop_assert_eq!(image.rgb().len() as u64, u64::from(image.width_px()) * u64::from(image.height_px()) * 3);
            prop_assert!(image.rgb().len() <= 3 << 20);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        start in prop::sample::select(vec![&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8X"]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = decode(&[start, &rest].concat(), &DecodeLimits { max_pixels: 1 << 20, max_alloc_bytes: 16 << 20 });
    }
}
