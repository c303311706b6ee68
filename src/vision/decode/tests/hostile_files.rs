//! Tests of decoding hostile files.

use image::ExtendedColorType;
use proptest::prelude::*;

use super::super::{
    super::{container::MAX_JPEG_SCANS, testing::*},
    *,
};

fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<_> = [As::Jpeg, As::Png, As::WebP]
        .into_iter()
        .map(|format| encode(format, (24, 16), &quadrants(24, 16), ExtendedColorType::Rgb8, &exif(8)))
        .collect();
    samples.push(encode(As::Png, (5, 3), &[90; 60], ExtendedColorType::Rgba8, &[]));
    samples.push(encode(As::WebP, (5, 3), &[90; 60], ExtendedColorType::Rgba8, &[]));
    for n_scans in [0, 4] {
        let form = JpegForm { n_scans, restart_interval: 2, ..JpegForm::default() };
        samples.push(jpeg(form, (40, 24), &photo(40, 24), &exif(3), &[]));
    }
    let inks = JpegForm { colour: jpeg_encoder::ColorType::CmykAsYcck, ..JpegForm::default() };
    samples.push(jpeg(inks, (12, 9), &[60; 12 * 9 * 4], &[], &[]));
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_images_never_panic(
        sample in 0..8usize,
        long_side in 1..48u32,
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
        let wanted = DecodeSize::LongSide(long_side);
        if let Ok(image) = decode(&bytes, &limits, wanted) {
            prop_assert_eq!(&decode(&bytes, &limits, wanted), &Ok(image.clone()));
            prop_assert!(image.width_px() <= image.full_width_px() && image.height_px() <= image.full_height_px());
            let full = image.full_width_px().max(image.full_height_px());
            prop_assert!(image.width_px().max(image.height_px()) >= long_side.min(full));
            prop_assert_eq!(image.rgb().len() as u64, u64::from(image.width_px()) * u64::from(image.height_px()) * 3);
            prop_assert!(image.rgb().len() <= 3 << 20);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        start in prop::sample::select(vec![&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8X"]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let limits = DecodeLimits { max_pixels: 1 << 20, max_alloc_bytes: 16 << 20 };
        let _ = decode(&[start, &rest].concat(), &limits, DecodeSize::LongSide(8));
    }
}

#[test]
fn a_jpeg_of_many_passes_over_nothing_is_refused() {
    let form = JpegForm { n_scans: 4, ..JpegForm::default() };
    let bytes = jpeg(form, (64, 48), &photo(64, 48), &[], &[]);
    let n_scans = bytes.windows(2).filter(|pair| pair == b"\xff\xda").count();
    // A refinement of one channel's first coefficients that ends at once.
    let empty = b"\xff\xda\x00\x08\x01\x01\x00\x01\x01\x10\x00";
    let with = |n: usize| {
        let end = bytes.len() - 2;
        [&bytes[..end], &empty.repeat(n), &bytes[end..]].concat()
    };
    let allowed = MAX_JPEG_SCANS as usize - n_scans;
    let detail = |bytes: &[u8]| match decode(bytes, &DecodeLimits::default(), DecodeSize::Full) {
        Err(ImageError::Unreadable { detail, .. }) => detail,
        other => format!("{other:?}"),
    };
    assert_eq!(detail(&with(allowed + 1)), "it has too many scans");
    assert_ne!(detail(&with(allowed)), "it has too many scans");
}

#[test]
fn codings_that_nobody_reads_are_refused() {
    let bytes = jpeg(JpegForm::default(), (64, 48), &photo(64, 48), &[], &[]);
    let frame = bytes.windows(2).position(|pair| pair == b"\xff\xc0").unwrap();
    // Lossless, hierarchical, and the three arithmetic ones.
    for code in [0xc3, 0xc5, 0xc9, 0xca, 0xcb] {
        let mut other = bytes.clone();
        other[frame + 1] = code;
        for wanted in [DecodeSize::Full, DecodeSize::LongSide(8)] {
            let result = decode(&other, &DecodeLimits::default(), wanted);
            assert!(matches!(result, Err(ImageError::Unreadable { format: "JPEG", .. })), "{code:x}: {result:?}");
        }
    }
}
