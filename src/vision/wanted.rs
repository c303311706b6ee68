//! How much of a photo its reader needs.

/// The least size that a decoded picture must have, in the photo's own shape. A decoder that can make a smaller picture
/// at less cost makes the smallest that still has it; one that cannot, and a photo that is smaller, give the whole.
///
/// The wish is part of a picture: the same photo decoded for another size has slightly other pixels. Whoever compares
/// or learns from pictures makes the same wish for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Every pixel that the file has.
    Full,
    /// At least so many pixels along the longer side.
    LongSide(u32),
    /// At least so many pixels along the shorter side: for a square that is cut from the middle.
    ShortSide(u32),
}

impl Wanted {
    /// By how much a picture of that size may be reduced while it is decoded: 1, 2, 4 or 8. Sides are rounded up.
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
            (Wanted::Full, 1),
            (Wanted::LongSide(640), 4),
            (Wanted::LongSide(504), 8),
            (Wanted::LongSide(505), 4),
            (Wanted::LongSide(2016), 2),
            (Wanted::LongSide(2017), 1),
            (Wanted::LongSide(9999), 1),
            (Wanted::ShortSide(224), 8),
            (Wanted::ShortSide(379), 4),
            (Wanted::ShortSide(0), 8),
        ] {
            assert_eq!((wanted, wanted.divisor(4032, 3024)), (wanted, divisor));
            assert_eq!(wanted.divisor(3024, 4032), divisor);
        }
    }

    proptest! {
        #[test]
        fn never_less_than_asked_and_never_more_than_twice(
            width in 1..70_000u32,
            height in 1..70_000u32,
            least in 1..5000u32,
        ) {
            let long = width.max(height);
            let divisor = Wanted::LongSide(least).divisor(width, height);
            prop_assert!(long.div_ceil(divisor) >= least.min(long));
            prop_assert!(divisor == 8 || long.div_ceil(divisor * 2) < least);
        }
    }
}
