//! A photo as its decoder leaves it.

use super::{ColourSource, PhotoNote};

/// A decoded photo, upright, 8 bits a channel, in sRGB as far as the file could be understood. All sides are at least
/// 1.
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
    /// A picture from rows of interleaved RGB; nothing when a side is zero or the bytes are not
    /// `width_px * height_px * 3`.
    #[must_use]
    pub fn from_rgb(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Option<Self> {
        let n_bytes = u64::from(width_px).checked_mul(u64::from(height_px))?.checked_mul(3)?;
        (n_bytes > 0 && n_bytes == rgb.len() as u64).then(|| Self::of(width_px, height_px, rgb))
    }

    /// Of as many bytes as the sides say.
    fn of(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Self {
        let (full_width_px, full_height_px) = (width_px, height_px);
        let (colour, notes) = (ColourSource::Srgb, Vec::new());
        Self { width_px, height_px, full_width_px, full_height_px, colour, notes, rgb }
    }

    /// Notes what the photo was before it was decoded: its upright size, its colours.
    pub(super) fn with_origin(self, (full_width_px, full_height_px): (u32, u32), colour: ColourSource) -> Self {
        let unsure = matches!(colour, ColourSource::ProfileIgnored { .. }).then_some(PhotoNote::ColoursUnsure);
        Self { full_width_px, full_height_px, colour, notes: unsure.into_iter().collect(), ..self }
    }

    /// The same, with one note more.
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

    /// What is odd about the file it came from.
    #[must_use]
    pub fn notes(&self) -> &[PhotoNote] {
        &self.notes
    }

    /// Rows from the top, RGB interleaved.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The part at `left` and `top` with these sides, as far as it lies within; a picture of its own, without what is
    /// known of the file.
    #[must_use]
    pub fn part(&self, left: u32, top: u32, width_px: u32, height_px: u32) -> Self {
        let (left, top) = (left.min(self.width_px - 1), top.min(self.height_px - 1));
        let width_px = width_px.clamp(1, self.width_px - left);
        let height_px = height_px.clamp(1, self.height_px - top);
        let rows = self.rgb.chunks_exact(self.width_px as usize * 3).skip(top as usize).take(height_px as usize);
        let columns = left as usize * 3..(left + width_px) as usize * 3;
        let rgb = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
        Self::of(width_px, height_px, rgb)
    }

    /// Turned by half.
    #[must_use]
    pub fn turned(&self) -> Self {
        let rgb = self.rgb.rchunks_exact(3).flatten().copied().collect();
        Self::of(self.width_px, self.height_px, rgb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_turns_are_where_they_were() {
        let photo = DecodedImage::from_rgb(3, 2, (0..18).collect()).unwrap();
        let part = photo.part(1, 1, 9, 9);
        assert_eq!((part.width_px(), part.height_px()), (2, 1));
        assert_eq!(part.rgb(), [12, 13, 14, 15, 16, 17]);
        assert_eq!(photo.part(9, 9, 0, 0).rgb(), [15, 16, 17]);
        let turned = photo.turned();
        assert_eq!((turned.width_px(), turned.height_px()), (3, 2));
        assert_eq!(turned.rgb()[..6], [15, 16, 17, 12, 13, 14]);
        assert_eq!(turned.turned(), photo);
    }
}
