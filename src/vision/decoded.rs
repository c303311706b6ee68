//! A decoded photo.

use super::{ColourSource, PhotoNote};

/// A decoded photo: upright, 8 bits a channel, converted to sRGB where the file's colour information permits. Each side
/// is at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedImage {
    width_px: u32,
    height_px: u32,
    full_width_px: u32,
    full_height_px: u32,
    colour: ColourSource,
    notes: Vec<PhotoNote>,
    rgb: Vec<u8>,
}

impl DecodedImage {
    /// Makes an image from rows of interleaved RGB. Returns `None` if a side is zero or there are not exactly
    /// `width_px * height_px * 3` bytes.
    #[must_use]
    pub fn from_rgb(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Option<Self> {
        let n_bytes = u64::from(width_px).checked_mul(u64::from(height_px))?.checked_mul(3)?;
        (n_bytes > 0 && n_bytes == rgb.len() as u64).then(|| Self::of(width_px, height_px, rgb))
    }

    /// The caller guarantees `width_px * height_px * 3` bytes.
    fn of(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Self {
        let (full_width_px, full_height_px) = (width_px, height_px);
        let (colour, notes) = (ColourSource::Srgb, Vec::new());
        Self { width_px, height_px, full_width_px, full_height_px, colour, notes, rgb }
    }

    /// Sets the photo's upright full size and its colour source.
    pub(super) fn with_origin(self, (full_width_px, full_height_px): (u32, u32), colour: ColourSource) -> Self {
        let unsure = matches!(colour, ColourSource::ProfileIgnored { .. }).then_some(PhotoNote::ColoursUnsure);
        Self { full_width_px, full_height_px, colour, notes: unsure.into_iter().collect(), ..self }
    }

    /// Adds a note.
    pub(super) fn with_note(mut self, note: Option<PhotoNote>) -> Self {
        self.notes.extend(note);
        self
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

    /// The photo's own width after orientation, in pixels. Up to eight times [`Self::width_px`] if the photo was
    /// reduced while it was decoded.
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

    /// The defects of the file.
    #[must_use]
    pub fn notes(&self) -> &[PhotoNote] {
        &self.notes
    }

    /// Rows from the top, RGB interleaved.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Returns the bytes of [`Self::rgb`].
    pub(super) fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// Rotates the image by 180 degrees.
    #[must_use]
    pub fn rotated_180(mut self) -> Self {
        // Reversing the bytes reverses each pixel's channels, too; restore their order.
        self.rgb.reverse();
        self.rgb.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_picture_begins_at_its_end() {
        let photo = DecodedImage::from_rgb(3, 2, (0..18).collect()).unwrap();
        let rotated = photo.clone().rotated_180();
        assert_eq!((rotated.width_px(), rotated.height_px()), (3, 2));
        assert_eq!(rotated.rgb()[..6], [15, 16, 17, 12, 13, 14]);
        assert_eq!(rotated.rotated_180(), photo);
    }
}
