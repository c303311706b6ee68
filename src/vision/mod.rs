//! Turns encoded bytes into a network's input.
//!
//! Owns decoding (with its limits), EXIF orientation, colour and preprocessing. Training and serving call the same
//! functions, so they cannot drift apart. Knows no tensors, no store, no transport.
//!
//! The steps: `container` checks that the file is complete and reads its header. [`decode()`] makes an upright sRGB
//! image, reduced as far as [`DecodeSize`] permits. It uses `jpeg` for reduced sizes and `colour` for profiles. For a
//! network that reads whole photos, [`decode_square`] decodes and preprocesses in one call. For one that reads faces,
//! [`FacePipeline`] prepares a photo for the detector and cuts out its faces: [`detect`] finds boxes and landmarks,
//! [`cut_chip`] makes the input, and [`FaceQuality`] measures how usable a face is.

mod align;
mod area;
mod colour;
mod container;
mod decode;
mod decode_size;
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

use bytes::Bytes;

pub use align::{ChipSettings, FaceChip, cut_chip, pixels_shown};
pub use colour::ColourSource;
pub use decode::{DecodeLimits, decode};
pub use decode_size::DecodeSize;
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

/// A square RGB image, complete but for normalisation, which the network's engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width and height in pixels.
    pub side_px: u32,
    /// `side_px * side_px * 3` bytes: rows from the top, RGB interleaved.
    pub rgb: Bytes,
}
