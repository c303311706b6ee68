//! Why an image cannot be used.

use crate::error::Kind;

/// An image that cannot be used. Only the caller can fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes do not start like any supported format.
    #[error("not a JPEG, PNG or WebP image: {found} ({n_bytes} bytes)")]
    UnsupportedFormat {
        /// What the bytes look like, and what to send instead.
        found: String,
        /// The number of bytes.
        n_bytes: usize,
    },
    /// The format is known but the content is damaged or truncated.
    #[error("the {format} image cannot be decoded: {detail}")]
    Unreadable {
        /// The format's name.
        format: &'static str,
        /// The decoder's message.
        detail: String,
    },
    /// The image has more pixels than the limit; nothing was allocated.
    #[error(
        "the image has {width}x{height} pixels; the limits are {max_pixels} in all and 65535 a side; send a smaller one"
    )]
    TooLarge {
        /// Claimed width in pixels.
        width: u32,
        /// Claimed height in pixels.
        height: u32,
        /// The limit on width times height.
        max_pixels: u64,
    },
}

impl ImageError {
    /// Returns who must act.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::UnsupportedFormat { .. } | Self::Unreadable { .. } | Self::TooLarge { .. } => Kind::Invalid,
        }
    }
}
