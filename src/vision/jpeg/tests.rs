//! Compares reduced decoding with full decoding and a mean over squares.

use jpeg_encoder::{ColorType, SamplingFactor};
use proptest::prelude::*;

use super::{super::testing::*, *};

const SAMPLINGS: [SamplingFactor; 8] = [
    SamplingFactor::F_1_1,
    SamplingFactor::F_2_1,
    SamplingFactor::F_1_2,
    SamplingFactor::F_2_2,
    SamplingFactor::F_4_1,
    SamplingFactor::F_4_2,
    SamplingFactor::F_1_4,
    SamplingFactor::F_2_4,
];

fn decode(bytes: &[u8], divisor: u32) -> Result<Samples, Setback> {
    Layout::read(bytes).and_then(|layout| layout.decode(divisor))
}

/// Decodes a JPEG at every size and returns the largest distance from the pixels it was made from.
fn furthest(bytes: &[u8], (width, height): (u32, u32), n_channels: usize, pixels: &[u8]) -> f64 {
    let (width, height) = (width as usize, height as usize);
    let distances = [1usize, 2, 4, 8].map(|divisor| {
        let samples = decode(bytes, divisor as u32).unwrap();
        assert_eq!((samples.width_px, samples.height_px), (width.div_ceil(divisor), height.div_ceil(divisor)));
        distance(&samples.bytes, &boxed((width, height), n_channels, pixels, divisor))
    });
    distances.into_iter().fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn every_form_is_read(
        width in 1..130u32,
        height in 1..130u32,
        sampling in prop::sample::select(SAMPLINGS.to_vec()),
        n_scans in prop::sample::select(vec![0u8, 2, 4, 9, 33]),
        restart_interval in prop::sample::select(vec![0u16, 1, 7]),
        optimised: bool,
    ) {
        // The encoder counts codes as if there were no restarts.
        let optimised = optimised && restart_interval == 0;
        let form = JpegForm { sampling, n_scans, restart_interval, optimised, ..JpegForm::default() };
        let pixels = photo(width, height);
        let bytes = jpeg(form, (width, height), &pixels, &[], &[]);
        let distance = furthest(&bytes, (width, height), 3, &pixels);
        // The encoder pads clipped blocks, which affects the remaining pixels: many of them in a small image.
        let most = if width.min(height) < 40 { 24.0 } else { 6.0 };
        prop_assert!(distance < most, "{distance}");
    }

    #[test]
    fn mutations_never_panic(
        n_scans in prop::sample::select(vec![0u8, 4]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
        divisor in prop::sample::select(vec![1u32, 2, 4, 8]),
    ) {
        let form = JpegForm { n_scans, restart_interval: 3, ..JpegForm::default() };
        let mut bytes = jpeg(form, (56, 40), &photo(56, 40), &[], &[]);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // A larger frame would be refused by the callers of `decode`.
        if let Ok(layout) = Layout::read(&bytes) && layout.alloc_bytes(divisor) < 4 << 20 {
            let once = layout.decode(divisor).map(|samples| samples.bytes);
            prop_assert_eq!(once, layout.decode(divisor).map(|samples| samples.bytes));
        }
    }
}

/// Pillow's encoder refines coefficients in later scans; the encoder of these tests does not.
#[test]
fn refinements_are_read() {
    let bytes = include_bytes!("../../../tests/fixtures/progressive.jpg");
    assert!(Layout::read(bytes).unwrap().scans.iter().any(|scan| scan.refines && scan.restart_interval == 5));
    let whole = image::load_from_memory(bytes).unwrap().into_rgb8();
    let distance = furthest(bytes, (117, 101), 3, whole.as_raw());
    assert!(distance < 3.0, "{distance}");
}

/// The order in which coefficients arrive does not affect the pixels.
#[test]
fn refinements_end_in_the_very_coefficients() {
    let progressive = include_bytes!("../../../tests/fixtures/progressive.jpg");
    let sequential = include_bytes!("../../../tests/fixtures/sequential.jpg");
    for divisor in [1, 2, 4, 8] {
        let [a, b] = [&progressive[..], sequential].map(|bytes| decode(bytes, divisor).unwrap().bytes);
        assert_eq!(a, b, "at 1/{divisor}");
    }
}

#[test]
fn grey_is_read() {
    let grey: Vec<u8> = photo(90, 70).chunks(3).map(|pixel| pixel[1]).collect();
    for n_scans in [0, 4] {
        let form = JpegForm { colour: ColorType::Luma, n_scans, ..JpegForm::default() };
        let distance = furthest(&jpeg(form, (90, 70), &grey, &[], &[]), (90, 70), 1, &grey);
        assert!(distance < 3.0, "{distance}");
    }
}

#[test]
fn inks_are_read_either_way_they_are_stored() {
    let inks: Vec<u8> = photo(80, 64).chunks(3).flat_map(|rgb| [255 - rgb[0], 255 - rgb[1], rgb[2] / 2, 30]).collect();
    for colour in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let form = JpegForm { colour, sampling: SamplingFactor::F_1_1, ..JpegForm::default() };
        let bytes = jpeg(form, (80, 64), &inks, &[], &[]);
        for divisor in [1, 2, 4, 8] {
            let samples = decode(&bytes, divisor).unwrap();
            assert_eq!(samples.channels, Channels::Cmyk);
            let distance = distance(&samples.bytes, &boxed((80, 64), 4, &inks, divisor as usize));
            assert!(distance < 4.0, "{colour:?} at 1/{divisor}: {distance}");
        }
    }
}

#[test]
fn what_is_not_for_here_is_left_alone() {
    let bytes = jpeg(JpegForm::default(), (40, 40), &photo(40, 40), &[], &[]);
    let frame = bytes.windows(2).position(|pair| pair == b"\xff\xc0").unwrap();
    // Arithmetic coding, twelve bits, a height that follows later, a factor of three.
    for (at, value) in [(1, 0xc9), (4, 12), (11, 0x31)] {
        let mut other = bytes.clone();
        other[frame + at] = value;
        assert!(decode(&other, 4).is_err());
    }
    let mut late = bytes.clone();
    late[frame + 5..frame + 7].fill(0);
    assert!(decode(&late, 4).is_err());
    assert!(decode(&bytes[..bytes.len() / 2], 4).is_err());
}
