//! Makes the network's square input of an image.

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};

use super::{DecodeLimits, DecodeSize, DecodedImage, ImageError, PhotoNote, Pixels, decode};

/// A network's square input, and the size of the photo it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SquarePhoto {
    /// The network's input.
    pub pixels: Pixels,
    /// The photo's own width after orientation, in pixels.
    pub full_width_px: u32,
    /// The photo's own height after orientation, in pixels.
    pub full_height_px: u32,
    /// The defects of the photo's file.
    pub notes: Vec<PhotoNote>,
}

/// Decodes a photo at the size that a network's input of `side_px` needs, then cuts and scales it.
///
/// Training and serving both call this, so they see the same pixels.
///
/// # Errors
/// Those of [`decode()`].
pub fn decode_square(bytes: &[u8], limits: &DecodeLimits, side_px: u32) -> Result<SquarePhoto, ImageError> {
    let image = decode(bytes, limits, DecodeSize::ShortSide(side_px))?;
    Ok(SquarePhoto {
        pixels: to_pixels(&image, side_px),
        full_width_px: image.full_width_px(),
        full_height_px: image.full_height_px(),
        notes: image.notes().to_vec(),
    })
}

/// Scales the image so that its shorter side is `side_px`, and keeps the centre square.
///
/// The filter is bilinear with a support that grows with the reduction, so that large photos are not aliased, as in
/// Pillow and torchvision's `antialias`, with which the published weights were trained. Enlarges small images. The same
/// image always yields the same pixels. A side of zero yields no pixels.
#[must_use]
pub fn to_pixels(image: &DecodedImage, side_px: u32) -> Pixels {
    let (width, height) = (image.width_px(), image.height_px());
    let short = width.min(height);
    // Whole pixels, so that an image of the right size is only cut, not blurred.
    let (left, top) = ((width - short) / 2, (height - short) / 2);
    if side_px == 0 {
        return Pixels { side_px, rgb: bytes::Bytes::new() };
    }
    let square = image.part((left, top, short, short), (side_px, side_px));
    Pixels { side_px, rgb: square.into_rgb().into() }
}

impl DecodedImage {
    /// Returns the whole image in another size, by the same filter; sides of zero become one.
    #[must_use]
    pub fn resized(&self, width_px: u32, height_px: u32) -> Self {
        self.part((0, 0, self.width_px(), self.height_px()), (width_px, height_px))
    }

    /// Returns the part at left and top with these sides, clipped to the image and scaled to `to` by the same filter.
    /// If the sizes are equal it is only cut. The result carries no facts about the file. Sides of zero become one.
    #[must_use]
    pub fn part(&self, (left, top, width, height): (u32, u32, u32, u32), to: (u32, u32)) -> Self {
        let (left, top) = (left.min(self.width_px() - 1), top.min(self.height_px() - 1));
        let (width, height) = (width.clamp(1, self.width_px() - left), height.clamp(1, self.height_px() - top));
        let (to_width, to_height) = (to.0.max(1), to.1.max(1));
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(
            left.into(),
            top.into(),
            width.into(),
            height.into(),
        );
        let mut part = Image::new(to_width, to_height, PixelType::U8x3);
        #[expect(clippy::expect_used, reason = "a DecodedImage has width * height * 3 bytes, and so has the target")]
        {
            let source = ImageRef::new(self.width_px(), self.height_px(), self.rgb(), PixelType::U8x3)
                .expect("the buffer has the right size");
            Resizer::new().resize(&source, &mut part, &options).expect("equal pixel types, a part inside the picture");
            Self::from_rgb(to_width, to_height, part.into_vec()).expect("both sides are at least one")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picture(width: u32, height: u32, colour: impl Fn(u32, u32) -> [u8; 3]) -> DecodedImage {
        let rgb = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y)).collect();
        DecodedImage::from_rgb(width, height, rgb).unwrap()
    }

    #[test]
    fn keeps_the_centre() {
        // Red to the left, green in the middle, blue to the right, each as wide as high.
        let wide = picture(90, 30, |x, _| match x / 30 {
            0 => [255, 0, 0],
            1 => [0, 255, 0],
            _ => [0, 0, 255],
        });
        // Equal to scaling first and then cutting: only the outermost pixels are mixed with their neighbours.
        let cut = to_pixels(&wide, 10).rgb;
        assert!(cut.chunks(3).all(|pixel| pixel[1] > 200));
        assert!(cut.chunks(30).all(|row| row[3..27] == [0, 255, 0].repeat(8)));
        let high = picture(30, 90, |_, y| if (30..60).contains(&y) { [9, 8, 7] } else { [250; 3] });
        assert_eq!(to_pixels(&high, 10).rgb[30..270], [9, 8, 7].repeat(80));
    }

    #[test]
    fn a_square_of_the_right_size_is_untouched() {
        let image = picture(32, 32, |x, y| [x as u8 * 8, y as u8 * 8, 3]);
        assert_eq!(to_pixels(&image, 32).rgb, image.rgb());
        let wider = picture(35, 32, |x, y| [x as u8, y as u8, 3]);
        let cut = to_pixels(&wider, 32).rgb;
        assert_eq!((cut[0], cut[31 * 3], cut[1]), (1, 32, 0));
    }

    #[test]
    fn reduction_averages_instead_of_picking() {
        // A fine chequerboard becomes an even grey; without a filter it would stay black, white or striped.
        let chequered = picture(256, 256, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]);
        let small = to_pixels(&chequered, 16);
        assert!(small.rgb.iter().all(|&v| (125..=130).contains(&v)), "{:?}", &small.rgb[..12]);
    }

    #[test]
    fn a_side_of_zero_gives_no_pixels() {
        assert_eq!(to_pixels(&picture(3, 4, |_, _| [1; 3]), 0).rgb, Vec::<u8>::new());
    }

    #[test]
    fn a_photo_becomes_a_square_that_looks_like_it() {
        let limits = DecodeLimits::default();
        let portrait = super::super::testing::PORTRAIT;
        let full = decode(portrait, &limits, DecodeSize::Full).unwrap();
        for side_px in [16, 36, 64, 100, 224, 320, 400] {
            let photo = decode_square(portrait, &limits, side_px).unwrap();
            assert_eq!((photo.full_width_px, photo.full_height_px, photo.pixels.side_px), (320, 320, side_px));
            let distance = super::super::testing::distance(&photo.pixels.rgb, &to_pixels(&full, side_px).rgb);
            assert!(distance < 3.0, "{side_px}: {distance}");
        }
    }

    proptest! {
        #[test]
        fn always_square_always_the_same(width in 1..80u32, height in 1..80u32, side_px in 1..70u32, salt: u8) {
            let image = picture(width, height, |x, y| [(x * 7 + y * 13) as u8 ^ salt, x as u8, y as u8]);
            let once = to_pixels(&image, side_px);
            prop_assert_eq!(once.rgb.len(), (side_px * side_px * 3) as usize);
            prop_assert_eq!(once.clone(), to_pixels(&image, side_px));
            let flat = picture(width, height, |_, _| [salt, 1, 254]);
            prop_assert_eq!(to_pixels(&flat, side_px).rgb, [salt, 1, 254].repeat((side_px * side_px) as usize));
        }
    }
}
