//! Pixels: encoded bytes to the network's input.
//!
//! Owns decoding (with its caps), EXIF orientation and preprocessing. Training and serving call the same functions,
//! so they cannot drift apart. Knows no tensors, no store, no transport.

mod error;

pub use error::ImageError;

/// A square RGB picture, ready for the network but for normalisation, which the network's engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width and height in pixels.
    pub side_px: u32,
    /// `side_px * side_px * 3` bytes: rows from the top, RGB interleaved.
    pub rgb: Vec<u8>,
}
