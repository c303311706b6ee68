//! Decoding: formats, colours, orientation, caps, damage.

use image::ExtendedColorType;

use super::{super::testing::*, *};

fn decode_default(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    decode(bytes, &DecodeLimits::default(), Wanted::Full)
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
        assert_eq!(decode(&bytes, &limits, Wanted::Full), refused, "{format:?}");
        assert!(decode(&bytes, &DecodeLimits { max_pixels: 48 * 32, ..limits }, Wanted::Full).is_ok(), "{format:?}");
        let few_bytes = DecodeLimits { max_alloc_bytes: 48 * 32 * 3, ..DecodeLimits::default() };
        let few_bytes = decode(&bytes, &few_bytes, Wanted::Full);
        assert!(
            matches!(few_bytes, Err(ImageError::TooLarge { max_pixels, .. }) if max_pixels < 48 * 32),
            "{format:?}"
        );
    }
    // A thousand million pixels in a header of a few bytes, with nothing behind it.
    let mut png = encode(As::Png, (1, 1), &[0], ExtendedColorType::L8, &[]);
    png[16..24].copy_from_slice(&[0, 0, 0x7a, 0x12, 0, 0, 0x80, 0]);
    assert!(matches!(decode_default(&png[..33]), Err(ImageError::TooLarge { width: 31250, height: 32768, .. })));
    // Few pixels, and none beside another: scaling would cost what its length says.
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 1]);
    assert!(matches!(decode_default(&png[..33]), Err(ImageError::TooLarge { width: 65536, height: 1, .. })));
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
