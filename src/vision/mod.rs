//! Pixels: encoded bytes to the network's input.
//!
//! Owns decoding (with its caps), EXIF orientation and preprocessing. Training and serving call the same functions,
//! so they cannot drift apart. Knows no tensors, no store, no transport. The way of a photo: `container` checks that
//! the file is whole and what it claims, [`decode()`] makes an upright RGB picture, [`to_pixels`] the network's input.

mod container;
mod decode;
mod error;
mod preprocess;

pub use decode::{DecodeLimits, DecodedImage, decode};
pub use error::ImageError;
pub use preprocess::to_pixels;

/// A square RGB picture, ready for the network but for normalisation, which the network's engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width and height in pixels.
    pub side_px: u32,
    /// `side_px * side_px * 3` bytes: rows from the top, RGB interleaved.
    pub rgb: Vec<u8>,
}
