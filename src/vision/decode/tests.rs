//! Tests of decoding: formats, colours, orientation, limits, damage.

mod hostile_files;
mod reduced_size;

use std::io::Write;

use image::ExtendedColorType;

use super::{super::testing::*, *};

fn decode_default(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    decode(bytes, &DecodeLimits::default(), DecodeSize::Full)
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
    // The positions of the stored rows and columns by EXIF 2.3.
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
        let result = decode_default(bytes);
        assert!(
            matches!(result, Err(ImageError::UnsupportedFormat { n_bytes, .. }) if n_bytes == bytes.len()),
            "{result:?}"
        );
    }
}

#[test]
fn codings_that_are_not_read_are_named() {
    for (mark, expected) in [(0xc3, "lossless"), (0xc9, "arithmetic"), (0xc5, "hierarchical"), (0xf7, "JPEG-LS")] {
        let bytes = [&[0xff, 0xd8, 0xff, mark, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0][..], &[0xff, 0xd9]].concat();
        let error = decode_default(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{mark:#x}: {error}");
    }
    let apple = b"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI\x50\0\x20\x02\x2b\xd5\xb3\x7f\0\0\0\x0dIHDR";
    let error = decode_default(apple).unwrap_err().to_string();
    assert!(error.contains("CgBI"), "{error}");
}

#[test]
fn every_cut_is_noticed() {
    for format in [As::Jpeg, As::Png, As::WebP] {
        let bytes = encode(format, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &exif(6));
        // A JPEG's end marker, a PNG's last chunk: without them every pixel is still there.
        let n_of_end = match format {
            As::Jpeg => 2,
            As::Png => 12,
            As::WebP => 0,
        };
        for n_bytes in 12..bytes.len() - n_of_end {
            let result = decode_default(&bytes[..n_bytes]);
            assert!(matches!(result, Err(ImageError::Unreadable { .. })), "{format:?} at {n_bytes}: {result:?}");
        }
        for n_bytes in bytes.len() - n_of_end..bytes.len() {
            let image = decode_default(&bytes[..n_bytes]).unwrap();
            assert_eq!(image.rgb(), decode_default(&bytes).unwrap().rgb(), "{format:?} at {n_bytes}");
            assert_eq!(image.notes(), [PhotoNote::EndMissing], "{format:?} at {n_bytes}");
        }
        // Bytes after the image do not belong to it.
        let mut trailed = bytes.clone();
        trailed.extend(b"maker's notes \xff\xd8\xff");
        assert_eq!(decode_default(&trailed), decode_default(&bytes), "{format:?}");
    }
    assert!(matches!(decode_default(&PORTRAIT[..PORTRAIT.len() / 2]), Err(ImageError::Unreadable { .. })));
}

/// Every form of JPEG is complete without its end marker or with other bytes before it, but not with a byte of pixels
/// less.
#[test]
fn a_jpeg_is_whole_when_its_pixels_are_all_there() {
    let pixels = photo(72, 56);
    for n_scans in [0, 4, 9] {
        for restart_interval in [0, 3] {
            let form = JpegForm { n_scans, restart_interval, ..JpegForm::default() };
            let bytes = jpeg(form, (72, 56), &pixels, &[], &[]);
            let (pixels, end) = bytes.split_at(bytes.len() - 2);
            let expected = decode_default(&bytes).unwrap();
            let odd_ends: [(&str, Vec<u8>); 8] = [
                ("nothing", Vec::new()),
                ("half a mark", vec![0xff]),
                ("a stray mark", [&[0xff, 0xc5], end].concat()),
                ("a stray mark of no kind", [&[0xff, 0x90], end].concat()),
                ("a segment of no length", [&[0xff, 0xe1, 0, 0], end].concat()),
                ("a segment that is too long", [&[0xff, 0xfe, 0xff, 0xff], end].concat()),
                ("a scan without a header", [&[0xff, 0xda], end].concat()),
                ("zeros", vec![0; 100]),
            ];
            for (what, odd_end) in odd_ends {
                for wanted in [DecodeSize::Full, DecodeSize::LongSide(20)] {
                    let image = decode(&[pixels, &odd_end].concat(), &DecodeLimits::default(), wanted);
                    let image = image.unwrap_or_else(|error| panic!("{form:?}, {what}: {error}"));
                    assert_eq!(image.notes(), [PhotoNote::EndMissing], "{form:?}, {what}");
                    if wanted == DecodeSize::Full {
                        assert_eq!(image.rgb(), expected.rgb(), "{form:?}, {what}");
                    }
                }
            }
            assert_eq!(expected.notes(), []);
            let first_scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
            for n_bytes in first_scan..pixels.len() {
                for wanted in [DecodeSize::Full, DecodeSize::LongSide(20)] {
                    let result = decode(&bytes[..n_bytes], &DecodeLimits::default(), wanted);
                    assert!(matches!(result, Err(ImageError::Unreadable { .. })), "{form:?} at {n_bytes}");
                }
            }
            // An end marker behind the cut does not make it complete. A cut progressive one lacks what its last scans
            // refine.
            for n_bytes in (first_scan + 20..pixels.len() - pixels.len() / 20).step_by(7) {
                let closed = [&bytes[..n_bytes], end, &bytes[n_bytes..]].concat();
                for wanted in [DecodeSize::Full, DecodeSize::LongSide(20)] {
                    let result = decode(&closed, &DecodeLimits::default(), wanted);
                    let is_refused = matches!(&result, Err(ImageError::Unreadable { .. }));
                    assert!(is_refused, "{form:?}, closed at {n_bytes}");
                }
            }
            let error = decode_default(&bytes[..pixels.len() - 20]).unwrap_err().to_string();
            assert!(error.contains("some of its pixels are missing"), "{form:?}: {error}");
        }
    }
}

#[test]
fn a_png_that_is_cut_between_its_pixels_is_refused() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.stream_writer_with_size(200).unwrap().write_all(&photo(64, 64)).unwrap();
    writer.finish().unwrap();
    let starts: Vec<_> = bytes.windows(4).enumerate().filter(|(_, name)| *name == b"IDAT").map(|(at, _)| at).collect();
    assert!(starts.len() > 3);
    let whole = decode_default(&bytes).unwrap();
    for at in &starts[1..] {
        match decode_default(&bytes[..at - 4]) {
            Err(ImageError::Unreadable { .. }) => {}
            // The last of them may hold only a checksum.
            cut => assert_eq!(cut.unwrap().rgb(), whole.rgb(), "{at}"),
        }
    }
    assert!(decode_default(&bytes[..starts[starts.len() - 2] - 4]).is_err());
    assert_eq!(decode_default(&bytes[..bytes.len() - 12]).unwrap().notes(), [PhotoNote::EndMissing]);
}

#[test]
fn the_header_is_checked_before_memory_is_taken() {
    let limits = DecodeLimits { max_pixels: 48 * 32 - 1, max_alloc_bytes: 1 << 30 };
    for format in [As::Jpeg, As::Png, As::WebP] {
        let bytes = encode(format, (48, 32), &quadrants(48, 32), ExtendedColorType::Rgb8, &[]);
        let refused = Err(ImageError::TooLarge { width: 48, height: 32, max_pixels: 48 * 32 - 1 });
        assert_eq!(decode(&bytes, &limits, DecodeSize::Full), refused, "{format:?}");
        assert!(
            decode(&bytes, &DecodeLimits { max_pixels: 48 * 32, ..limits }, DecodeSize::Full).is_ok(),
            "{format:?}"
        );
        let few_bytes = DecodeLimits { max_alloc_bytes: 48 * 32 * 3, ..DecodeLimits::default() };
        let few_bytes = decode(&bytes, &few_bytes, DecodeSize::Full);
        assert!(
            matches!(few_bytes, Err(ImageError::TooLarge { max_pixels, .. }) if max_pixels < 48 * 32),
            "{format:?}"
        );
    }
    // A thousand million pixels in a header of a few bytes, with nothing behind it.
    let mut png = encode(As::Png, (1, 1), &[0], ExtendedColorType::L8, &[]);
    png[16..24].copy_from_slice(&[0, 0, 0x7a, 0x12, 0, 0, 0x80, 0]);
    assert!(matches!(decode_default(&png[..33]), Err(ImageError::TooLarge { width: 31250, height: 32768, .. })));
    // Few pixels in a single column: scaling costs as much as its length suggests.
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
