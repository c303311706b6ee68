//! Pixels: encoded bytes to the network's input.
//!
//! Owns decoding (with its caps), EXIF orientation, colour and preprocessing. Training and serving call the same
//! functions, so they cannot drift apart. Knows no tensors, no store, no transport. The way of a photo: `container`
//! checks that the file is whole and what it claims, [`decode()`] makes an upright sRGB picture of the size that is
//! [`Wanted`] (by `jpeg` where that is less than the whole, with `colour` for its profile). For a network that reads
//! whole photos, [`decode_square`] is that and the input in one call. For one that reads faces, [`FacePipeline`] looks
//! at a photo and cuts its faces out: [`detect`] has the boxes and landmarks, [`cut_chip`] makes the input, and
//! [`FaceQuality`] says how fit it is.

mod align;
mod area;
mod colour;
mod container;
mod decode;
mod decoded;
pub mod detect;
mod error;
mod faces;
mod foreign;
mod geometry;
mod jpeg;
mod landmarks;
mod note;
mod orientation;
mod png_colour;
mod preprocess;
mod quality;
#[cfg(test)]
mod testing;
mod wanted;

use bytes::Bytes;

pub use align::{ChipSettings, FaceChip, cut_chip, pixels_shown};
pub use colour::ColourSource;
pub use decode::{DecodeLimits, decode};
pub use decoded::DecodedImage;
pub use detect::{
    AlignmentBox, BoundingBox, CascadeSettings, DetectedFace, DetectionView, DetectorSettings, FaceCrop, Pyramid,
    points,
};
pub use error::ImageError;
pub use faces::{CutFace, FacePipeline};
pub use geometry::Point;
pub use landmarks::{ShapeParts, ShapePredictor};
pub use note::PhotoNote;
pub use preprocess::{SquarePhoto, decode_square, to_pixels};
pub use quality::FaceQuality;
pub use wanted::Wanted;

/// A square RGB picture, ready for the network but for normalisation, which the network's engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width and height in pixels.
    pub side_px: u32,
    /// `side_px * side_px * 3` bytes: rows from the top, RGB interleaved.
    pub rgb: Bytes,
}
