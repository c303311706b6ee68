//! The resolution that a network needs of a photo.

/// The minimum size of a decoded image, in the photo's aspect ratio. A decoder that can reduce cheaply returns the
/// smallest size that is enough. One that cannot, and a photo that is smaller, return the full size.
///
/// The wanted size affects the pixels: the same photo decoded at another size differs slightly. Use one size for all
/// images that are compared or trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeSize {
    /// Every pixel of the file.
    Full,
    /// At least this many pixels along the longer side.
    LongSide(u32),
    /// At least this many pixels along the shorter side, for a centre square.
    ShortSide(u32),
}

impl DecodeSize {
    /// Returns the factor by which an image of this size may be reduced while it is decoded: 1, 2, 4 or 8. Reduced
    /// sides are rounded up.
    pub(super) fn divisor(self, width_px: u32, height_px: u32) -> u32 {
        let (side, least) = match self {
            Self::Full => return 1,
            Self::LongSide(least) => (width_px.max(height_px), least),
            Self::ShortSide(least) => (width_px.min(height_px), least),
        };
        [8, 4, 2].into_iter().find(|&divisor| side.div_ceil(divisor) >= least.max(1)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_that_is_enough() {
        for (wanted, divisor) in [
            (DecodeSize::Full, 1),
            (DecodeSize::LongSide(640), 4),
            (DecodeSize::LongSide(504), 8),
            (DecodeSize::LongSide(505), 4),
            (DecodeSize::LongSide(2016), 2),
            (DecodeSize::LongSide(2017), 1),
            (DecodeSize::LongSide(9999), 1),
            (DecodeSize::ShortSide(224), 8),
            (DecodeSize::ShortSide(379), 4),
            (DecodeSize::ShortSide(0), 8),
        ] {
            assert_eq!((wanted, wanted.divisor(4032, 3024)), (wanted, divisor));
            assert_eq!(wanted.divisor(3024, 4032), divisor);
        }
    }

    proptest! {
        #[test]
        fn never_less_than_requested_and_never_more_than_twice(
            width in 1..70_000u32,
            height in 1..70_000u32,
            least in 1..5000u32,
        ) {
            let long = width.max(height);
            let divisor = DecodeSize::LongSide(least).divisor(width, height);
            prop_assert!(long.div_ceil(divisor) >= least.min(long));
            prop_assert!(divisor == 8 || long.div_ceil(divisor * 2) < least);
        }
    }
}
