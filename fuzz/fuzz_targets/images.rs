//! Shared by the image targets: decodes in full and reduced.

use visage::vision::{DecodeLimits, DecodeSize, decode};

/// Replaces libFuzzer's panic hook, which would abort even for panics that `decode` catches. A panic that is not caught
/// still ends the run when it reaches libFuzzer.
pub fn allow_contained_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        eprintln!("a panic at {}", place.unwrap_or_default());
    }));
}

/// Decodes the bytes when they start like the format's files.
pub fn read(data: &[u8], is_format: impl Fn(&[u8]) -> bool) {
    if !is_format(data) {
        return;
    }
    let limits = DecodeLimits { max_pixels: 1 << 20, max_alloc_bytes: 32 << 20 };
    for wanted in [DecodeSize::Full, DecodeSize::LongSide(20), DecodeSize::ShortSide(1)] {
        if let Ok(image) = decode(data, &limits, wanted) {
            let n_pixels = image.width_px() as usize * image.height_px() as usize;
            assert_eq!(image.rgb().len(), n_pixels * 3);
            assert!(image.width_px() <= image.full_width_px() && image.height_px() <= image.full_height_px());
        }
    }
}
