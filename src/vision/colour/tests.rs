//! Channels and profiles: every image becomes 8-bit sRGB.

use image::ExtendedColorType;
use jpeg_encoder::ColorType;
use moxcms::ColorProfile;
use proptest::prelude::*;

use super::{
    super::{DecodeLimits, DecodeSize, DecodedImage, ImageError, decode, testing::*},
    *,
};

fn decode_default(bytes: &[u8]) -> Result<DecodedImage, ImageError> {
    decode(bytes, &DecodeLimits::default(), DecodeSize::Full)
}

#[test]
fn other_colours_become_rgb() {
    let grey = encode(As::Jpeg, (16, 16), &[77; 256], ExtendedColorType::L8, &[]);
    assert!(decode_default(&grey).unwrap().rgb().iter().all(|v| v.abs_diff(77) <= 1));
    let grey_png = encode(As::Png, (2, 1), &[3, 250], ExtendedColorType::L8, &[]);
    assert_eq!(decode_default(&grey_png).unwrap().rgb(), [3, 3, 3, 250, 250, 250]);
    let grey_alpha = encode(As::Png, (2, 1), &[0, 0, 100, 255], ExtendedColorType::La8, &[]);
    assert_eq!(decode_default(&grey_alpha).unwrap().rgb(), [255, 255, 255, 100, 100, 100]);
    let deep_grey: Vec<u8> = [0x8000u16, 0xffff].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let deep_grey = encode(As::Png, (2, 1), &deep_grey, ExtendedColorType::L16, &[]);
    assert_eq!(decode_default(&deep_grey).unwrap().rgb(), [128, 128, 128, 255, 255, 255]);
    let deep_alpha: Vec<u8> = [0, 0, 0xffff, 0].iter().flat_map(|v: &u16| v.to_ne_bytes()).collect();
    let deep_alpha = encode(As::Png, (1, 1), &deep_alpha, ExtendedColorType::Rgba16, &[]);
    assert_eq!(decode_default(&deep_alpha).unwrap().rgb(), [255, 255, 255]);
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
fn a_palette_becomes_rgb() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Two);
    encoder.set_palette(vec![1, 2, 3, 250, 0, 9, 7, 7, 7]);
    encoder.set_trns(vec![255, 255, 0]);
    encoder.write_header().unwrap().write_image_data(&[0b00_01_10_00]).unwrap();
    assert_eq!(decode_default(&bytes).unwrap().rgb(), [1, 2, 3, 250, 0, 9, 255, 255, 255]);
}

#[test]
fn inks_become_rgb() {
    // White, black by ink, black by black ink, cyan at half.
    let inks = [[0u8, 0, 0, 0], [255, 255, 255, 0], [0, 0, 0, 255], [128, 0, 0, 0]];
    let pixels: Vec<u8> = (0..16).flat_map(|_| inks.iter().flat_map(|ink| ink.repeat(16))).collect();
    let expected = [[255, 255, 255], [0, 0, 0], [0, 0, 0], [127, 255, 255]];
    for colour in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let form = JpegForm { colour, sampling: jpeg_encoder::SamplingFactor::F_1_1, ..JpegForm::default() };
        let bytes = jpeg(form, (64, 16), &pixels, &[], &[]);
        for wanted in [DecodeSize::Full, DecodeSize::LongSide(16), DecodeSize::LongSide(1)] {
            let image = decode(&bytes, &DecodeLimits::default(), wanted).unwrap();
            let quarter = image.width_px() as usize / 4;
            for (idx, expected) in expected.iter().enumerate() {
                let pixel = &image.rgb()[(idx * quarter + quarter / 2) * 3..][..3];
                assert!(distance(pixel, expected) < 6.0, "{colour:?}: {pixel:?} for {expected:?}");
            }
        }
    }
}

fn with_profile(pixels: &[u8], profile: &[u8]) -> DecodedImage {
    let form = JpegForm { sampling: jpeg_encoder::SamplingFactor::F_1_1, ..JpegForm::default() };
    decode_default(&jpeg(form, (16, 16), pixels, &exif(1), profile)).unwrap()
}

#[test]
fn display_p3_becomes_srgb() {
    let p3 = ColorProfile::new_display_p3().encode().unwrap();
    // The reddest sRGB colour in Display P3, and a skin tone (both from CSS Color 4's matrices).
    for (p3_value, srgb_value) in [([234u8, 51, 35], [255u8, 0, 0]), ([216, 172, 148], [224, 170, 144])] {
        let image = with_profile(&p3_value.repeat(256), &p3);
        assert_eq!(image.colour(), &ColourSource::Converted);
        let pixel = &image.rgb()[..3];
        assert!(pixel.iter().zip(srgb_value).all(|(a, b)| a.abs_diff(b) <= 5), "{pixel:?} for {srgb_value:?}");
    }
    // Every size uses the same profile.
    let bytes = jpeg(JpegForm::default(), (64, 64), &[216u8, 172, 148].repeat(64 * 64), &[], &p3);
    for wanted in [DecodeSize::Full, DecodeSize::LongSide(8)] {
        let image = decode(&bytes, &DecodeLimits::default(), wanted).unwrap();
        assert_eq!(image.colour(), &ColourSource::Converted);
        assert!(image.rgb()[0] > 219, "{:?}", &image.rgb()[..3]);
    }
}

/// The expected values are LittleCMS's conversion of the same file.
#[test]
fn display_p3_is_converted_as_others_convert_it() {
    let image = decode_default(include_bytes!("../../../tests/fixtures/display_p3.png")).unwrap();
    let expected = decode_default(include_bytes!("../../../tests/fixtures/display_p3_srgb.png")).unwrap();
    assert_eq!((image.colour(), expected.colour()), (&ColourSource::Converted, &ColourSource::Srgb));
    let furthest = image.rgb().iter().zip(expected.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(2), "{furthest:?}");
}

#[test]
fn inks_of_another_program_look_like_the_portrait() {
    let inks = decode_default(include_bytes!("../../../tests/fixtures/inks.jpg")).unwrap();
    let portrait = decode(PORTRAIT, &DecodeLimits::default(), DecodeSize::Full).unwrap();
    let (inks, portrait) = (super::super::to_pixels(&inks, 28), super::super::to_pixels(&portrait, 28));
    let distance = distance(&inks.rgb, &portrait.rgb);
    assert!(distance < 6.0, "{distance}");
}

#[test]
fn srgb_passes_untouched() {
    let pixels = photo(16, 16);
    let plain = with_profile(&pixels, &[]);
    assert_eq!(plain.colour(), &ColourSource::Srgb);
    assert_eq!(with_profile(&pixels, &ColorProfile::new_srgb().encode().unwrap()), plain);
}

#[test]
fn grey_profiles_serve_grey_pictures() {
    let profile = ColorProfile::new_gray_with_gamma(1.0).encode().unwrap();
    let form = JpegForm { colour: ColorType::Luma, ..JpegForm::default() };
    let grey = decode_default(&jpeg(form, (16, 16), &[55; 256], &[], &profile)).unwrap();
    assert_eq!(grey.colour(), &ColourSource::Converted);
    // A fifth of linear light is half-way up sRGB's scale.
    assert!(grey.rgb().iter().all(|v| v.abs_diff(127) <= 2), "{:?}", &grey.rgb()[..3]);
    let coloured = with_profile(&photo(16, 16), &profile);
    assert!(matches!(coloured.colour(), ColourSource::ProfileIgnored { .. }));
}

#[test]
fn a_profile_that_cannot_be_followed_is_named() {
    let pixels = photo(16, 16);
    let plain = with_profile(&pixels, &[]);
    let p3 = ColorProfile::new_display_p3().encode().unwrap();
    let mut lab = p3.clone();
    lab[16..20].copy_from_slice(b"Lab ");
    let mut inks = p3.clone();
    inks[16..20].copy_from_slice(b"CMYK");
    for broken in [&p3[..100], b"no profile at all", &p3[..p3.len() - 40], &lab, &inks] {
        let image = with_profile(&pixels, broken);
        assert!(
            matches!(image.colour(), ColourSource::ProfileIgnored { why } if !why.is_empty()),
            "{:?}",
            image.colour()
        );
        assert_eq!(image.rgb(), plain.rgb());
    }
    let huge = to_srgb(&mut [1, 2, 3], false, Ok(Some(&vec![0; MAX_PROFILE_BYTES + 1])));
    assert!(matches!(huge, ColourSource::ProfileIgnored { .. }));
    // Inks with a profile for RGB.
    let form = JpegForm { colour: ColorType::Cmyk, ..JpegForm::default() };
    let inked = decode_default(&jpeg(form, (16, 16), &[0; 1024], &[], &p3)).unwrap();
    assert!(matches!(inked.colour(), ColourSource::ProfileIgnored { .. }));
    assert!(inked.rgb().iter().all(|&v| v > 250));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_profiles_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut profile = ColorProfile::new_display_p3().encode().unwrap();
        for (at, value) in edits {
            let at = at.index(profile.len());
            profile[at] = value;
        }
        let (mut once, mut twice) = (photo(8, 8), photo(8, 8));
        let colour = to_srgb(&mut once, false, Ok(Some(&profile)));
        prop_assert_eq!(colour, to_srgb(&mut twice, false, Ok(Some(&profile))));
        prop_assert_eq!(once, twice);
    }
}
