//! A photo as its decoder leaves it.

use super::ColourSource;

/// A decoded photo, upright, 8 bits a channel, in sRGB as far as the file could be understood. All sides are at least
/// 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedImage {
    width_px: u32,
    height_px: u32,
    full_width_px: u32,
    full_height_px: u32,
    colour: ColourSource,
    rgb: Vec<u8>,
}

impl DecodedImage {
    /// A picture from rows of interleaved RGB; nothing when a side is zero or the bytes are not
    /// `width_px * height_px * 3`.
    #[must_use]
    pub fn from_rgb(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Option<Self> {
        let n_bytes = u64::from(width_px).checked_mul(u64::from(height_px))?.checked_mul(3)?;
        let colour = ColourSource::Srgb;
        (n_bytes > 0 && n_bytes == rgb.len() as u64).then_some(Self {
            width_px,
            height_px,
            full_width_px: width_px,
            full_height_px: height_px,
            colour,
            rgb,
        })
    }

    /// Notes what the photo was before it was decoded: its upright size, its colours.
    pub(super) fn with_origin(self, (full_width_px, full_height_px): (u32, u32), colour: ColourSource) -> Self {
        Self { full_width_px, full_height_px, colour, ..self }
    }

    /// Width after orientation, in pixels.
    #[must_use]
    pub fn width_px(&self) -> u32 {
        self.width_px
    }

    /// Height after orientation, in pixels.
    #[must_use]
    pub fn height_px(&self) -> u32 {
        self.height_px
    }

    /// The photo's own width after orientation, in pixels: [`Self::width_px`] or, if it was reduced while it was
    /// decoded, up to eight times as much.
    #[must_use]
    pub fn full_width_px(&self) -> u32 {
        self.full_width_px
    }

    /// The photo's own height after orientation, in pixels.
    #[must_use]
    pub fn full_height_px(&self) -> u32 {
        self.full_height_px
    }

    /// Where the colours come from.
    #[must_use]
    pub fn colour(&self) -> &ColourSource {
        &self.colour
    }

    /// Rows from the top, RGB interleaved.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}
