//! Random mirroring and cropping, so that each pass sees different images.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::vision::{DecodedImage, Pixels, to_pixels};

/// How training images are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Augmentation {
    /// Side of the network's input in pixels.
    pub(crate) image_size_px: u32,
    /// The largest share of each side that is cut off, 0 to 0.5.
    pub(crate) crop_fraction: f64,
    /// Probability of mirroring, 0 to 1.
    pub(crate) flip_probability: f64,
}

impl Augmentation {
    /// Crops a random share of the image at a random place, scales it to the network's side as serving does, and
    /// mirrors it at random.
    #[must_use]
    pub(crate) fn apply(&self, picture: &Pixels, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let share = rng.random_range(0.0..=self.crop_fraction);
        let side_px = picture.side_px;
        let kept_px = ((f64::from(side_px) * (1.0 - share)).round() as u32).clamp(1, side_px.max(1));
        let left = rng.random_range(0..=side_px.saturating_sub(kept_px));
        let top = rng.random_range(0..=side_px.saturating_sub(kept_px));
        let mut rgb = self.scaled(cut(picture, left, top, kept_px), kept_px);
        if rng.random_bool(self.flip_probability.clamp(0.0, 1.0)) {
            mirror(&mut rgb, self.image_size_px);
        }
        rgb
    }

    fn scaled(&self, rgb: Vec<u8>, side_px: u32) -> Vec<u8> {
        if side_px == self.image_size_px {
            return rgb;
        }
        match DecodedImage::from_rgb(side_px, side_px, rgb) {
            Some(image) => to_pixels(&image, self.image_size_px).rgb.into(),
            // Only if the image's number of bytes was wrong.
            None => Vec::new(),
        }
    }
}

/// Cuts a square out of the image.
fn cut(picture: &Pixels, left: u32, top: u32, kept_px: u32) -> Vec<u8> {
    let row_bytes = picture.side_px as usize * 3;
    let from = left as usize * 3;
    let rows = picture.rgb.chunks_exact(row_bytes.max(1)).skip(top as usize).take(kept_px as usize);
    rows.flat_map(|row| row.get(from..from + kept_px as usize * 3).unwrap_or_default()).copied().collect()
}

/// Swaps left and right.
fn mirror(rgb: &mut [u8], side_px: u32) {
    for row in rgb.chunks_exact_mut((side_px as usize * 3).max(1)) {
        row.reverse();
        // Reversing the row also reversed each pixel's colours.
        for pixel in row.chunks_exact_mut(3) {
            pixel.reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    /// Red encodes the column, green the row.
    fn picture(side_px: u32) -> Pixels {
        let pixel = |at: u32| [(at % side_px) as u8, (at / side_px) as u8, 7];
        Pixels { side_px, rgb: (0..side_px * side_px).flat_map(pixel).collect() }
    }

    fn apply(augmentation: Augmentation, picture: &Pixels, seed: u64) -> Vec<u8> {
        augmentation.apply(picture, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn without_chance_nothing_changes() {
        let plain = Augmentation { image_size_px: 32, crop_fraction: 0.0, flip_probability: 0.0 };
        assert_eq!(apply(plain, &picture(32), 1), picture(32).rgb);
    }

    #[test]
    fn a_mirrored_picture_has_its_colours_and_rows() {
        let mirrored = Augmentation { image_size_px: 32, crop_fraction: 0.0, flip_probability: 1.0 };
        let rgb = apply(mirrored, &picture(32), 1);
        assert_eq!(rgb[..3], [31, 0, 7]);
        assert_eq!(rgb[rgb.len() - 3..], [0, 31, 7]);
    }

    #[test]
    fn crops_differ_and_repeat_with_their_seed() {
        let cropped = Augmentation { image_size_px: 32, crop_fraction: 0.3, flip_probability: 0.5 };
        let picture = picture(46);
        assert_eq!(apply(cropped, &picture, 1), apply(cropped, &picture, 1));
        assert_ne!(apply(cropped, &picture, 1), apply(cropped, &picture, 2));
    }

    proptest! {
        #[test]
        fn the_side_is_always_the_networks(
            side_px in 1_u32..80, crop_fraction in 0.0..=0.5_f64, flip_probability in 0.0..=1.0_f64, seed in any::<u64>(),
        ) {
            let rgb = apply(Augmentation { image_size_px: 32, crop_fraction, flip_probability }, &picture(side_px), seed);
            prop_assert_eq!(rgb.len(), 32 * 32 * 3);
            prop_assert!(rgb.chunks(3).all(|pixel| pixel[2] == 7));
        }
    }
}
