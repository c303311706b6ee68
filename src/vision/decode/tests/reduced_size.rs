//! Tests of decoding at a reduced size.

use proptest::prelude::*;

use super::super::{super::testing::*, *};

fn decode_to(bytes: &[u8], wanted: DecodeSize) -> DecodedImage {
    decode(bytes, &DecodeLimits::default(), wanted).unwrap()
}

#[test]
fn a_portrait_comes_as_small_as_is_enough() {
    for (least, side) in [(1, 40), (40, 40), (41, 80), (80, 80), (81, 160), (161, 320), (5000, 320)] {
        for wanted in [DecodeSize::LongSide(least), DecodeSize::ShortSide(least)] {
            let image = decode_to(PORTRAIT, wanted);
            assert_eq!((image.width_px(), image.height_px()), (side, side), "{wanted:?}");
            assert_eq!((image.full_width_px(), image.full_height_px()), (320, 320));
            assert_eq!(image, decode_to(PORTRAIT, wanted));
        }
    }
}

#[test]
fn every_orientation_is_right_at_every_size() {
    for orientation in 1..=8 {
        let bytes = jpeg(JpegForm::default(), (144, 96), &quadrants(144, 96), &exif(orientation), &[]);
        let full = decode_to(&bytes, DecodeSize::Full);
        for divisor in [2, 4, 8] {
            let small = decode_to(&bytes, DecodeSize::LongSide(144 / divisor));
            let size = (full.width_px() / divisor, full.height_px() / divisor);
            assert_eq!((small.width_px(), small.height_px()), size, "{orientation} at 1/{divisor}");
            assert_eq!((small.full_width_px(), small.full_height_px()), (full.width_px(), full.height_px()));
            assert_eq!(seen(&small), seen(&full), "{orientation} at 1/{divisor}");
        }
    }
}

#[test]
fn other_formats_come_in_full() {
    for format in [As::Png, As::WebP] {
        let bytes = encode(format, (48, 32), &quadrants(48, 32), image::ExtendedColorType::Rgb8, &exif(6));
        let image = decode_to(&bytes, DecodeSize::LongSide(6));
        assert_eq!(image, decode_to(&bytes, DecodeSize::Full));
        assert_eq!((image.width_px(), image.full_width_px(), image.full_height_px()), (32, 32, 48));
    }
}

#[test]
fn what_is_not_read_reduced_is_read_whole() {
    let bytes = jpeg(JpegForm::default(), (64, 48), &photo(64, 48), &[], &[]);
    assert_eq!(decode_to(&bytes, DecodeSize::LongSide(8)).width_px(), 8);
    // Bits that are no code, in the middle of the data; the decoder of full images continues after them.
    let mut n_whole = 0;
    for at in (bytes.len() - 800..bytes.len() - 40).step_by(8) {
        let mut damaged = bytes.clone();
        damaged[at..at + 24].fill(0xfe);
        let limits = DecodeLimits::default();
        let (small, full) =
            (decode(&damaged, &limits, DecodeSize::LongSide(8)), decode(&damaged, &limits, DecodeSize::Full));
        assert_eq!(small.is_ok(), full.is_ok(), "damaged at {at}");
        if small.as_ref().is_ok_and(|small| small.width_px() == 64) {
            assert_eq!(small, full, "damaged at {at}");
            n_whole += 1;
        }
    }
    assert!(n_whole > 0, "no damage was left to the other decoder");
}

#[test]
fn memory_is_counted_before_it_is_taken() {
    let colour = jpeg_encoder::ColorType::Cmyk;
    let form = JpegForm { colour, n_scans: 2, sampling: jpeg_encoder::SamplingFactor::F_1_1, ..JpegForm::default() };
    let inks: Vec<u8> = photo(256, 256).chunks(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 30]).collect();
    let bytes = jpeg(form, (256, 256), &inks, &[], &[]);
    let result =
        |max_alloc_bytes, wanted| decode(&bytes, &DecodeLimits { max_alloc_bytes, ..DecodeLimits::default() }, wanted);
    // Seven bytes a pixel are enough for four inks and their image. The coefficients need as much again, but few of
    // them are kept for a reduced image.
    let full = result(256 * 256 * 7, DecodeSize::Full);
    assert!(matches!(full, Err(ImageError::TooLarge { width: 256, height: 256, .. })), "{full:?}");
    assert!(result(256 * 256 * 24, DecodeSize::Full).is_ok());
    assert!(result(256 * 256 * 7, DecodeSize::LongSide(64)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn reduced_is_close_to_full_and_boxed(
        width in 9..200u32,
        height in 9..200u32,
        least in 1..200u32,
        orientation in 1..9u8,
    ) {
        let bytes = jpeg(JpegForm::default(), (width, height), &photo(width, height), &exif(orientation), &[]);
        let full = decode_to(&bytes, DecodeSize::Full);
        let small = decode_to(&bytes, DecodeSize::ShortSide(least));
        let size = (full.width_px(), full.height_px());
        prop_assert_eq!((small.full_width_px(), small.full_height_px()), size);
        let divisor = DecodeSize::ShortSide(least).divisor(size.0, size.1);
        let size_now = (size.0.div_ceil(divisor), size.1.div_ceil(divisor));
        prop_assert_eq!((small.width_px(), small.height_px()), size_now);
        prop_assert!(small.width_px().min(small.height_px()) >= least.min(width.min(height)));
        // Rotated sides are rounded up at the other end, so sizes that do not divide are compared without rotation
        // only.
        if orientation == 1 || (width % divisor == 0 && height % divisor == 0) {
            let boxed = boxed((size.0 as usize, size.1 as usize), 3, full.rgb(), divisor as usize);
            let distance = distance(small.rgb(), &boxed);
            prop_assert!(distance < 4.0, "{divisor}: {distance}");
        }
    }
}
