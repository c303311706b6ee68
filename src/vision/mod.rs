//! Pixels: encoded bytes to the network's input.
//!
//! Owns decoding (with its caps), EXIF orientation and preprocessing. Training and serving call the same functions,
//! so they cannot drift apart. Knows no tensors, no store, no transport. The way of a photo: `container` checks that
//! the file is whole and what it claims, [`decode()`] makes an upright RGB picture. [`to_pixels`] makes the input of a
//! network that reads whole photos. For one that reads faces, [`detect`] has the boxes and landmarks, [`cut_chip`] makes
//! the input, and [`FaceQuality`] says how fit it is.

mod align;
mod area;
mod container;
mod decode;
pub mod detect;
mod error;
mod landmarks;
mod preprocess;
mod quality;

pub use align::{ChipSettings, FaceChip, cut_chip};
pub use decode::{DecodeLimits, DecodedImage, decode};
pub use detect::{BoundingBox, CascadeSettings, DetectedFace, Point, Pyramid};
pub use error::ImageError;
pub use landmarks::{ShapeParts, ShapePredictor};
pub use preprocess::to_pixels;
pub use quality::FaceQuality;

/// A square RGB picture, ready for the network but for normalisation, which the network's engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width and height in pixels.
    pub side_px: u32,
    /// `side_px * side_px * 3` bytes: rows from the top, RGB interleaved.
    pub rgb: Vec<u8>,
}
