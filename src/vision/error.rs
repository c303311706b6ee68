//! What can be wrong with a picture.

use crate::error::Kind;

/// An image that cannot be used. Always the caller's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes start like none of the supported formats.
    #[error("not a JPEG, PNG or WebP image: {found} ({n_bytes} bytes)")]
    UnsupportedFormat {
        /// What they look like instead, and what to send.
        found: String,
        /// How many bytes there were.
        n_bytes: usize,
    },
    /// The format is known but the content is damaged or cut short.
    #[error("the {format} image cannot be decoded: {detail}")]
    Unreadable {
        /// The format's name.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// More pixels than the cap; nothing was allocated.
    #[error(
        "the image has {width}x{height} pixels, at most {max_pixels} are decoded and 65535 a side; send a smaller one"
    )]
    TooLarge {
        /// Claimed width in pixels.
        width: u32,
        /// Claimed height in pixels.
        height: u32,
        /// The cap on width times height.
        max_pixels: u64,
    },
}

impl ImageError {
    /// Who must act.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::UnsupportedFormat { .. } | Self::Unreadable { .. } | Self::TooLarge { .. } => Kind::Invalid,
        }
    }
}
