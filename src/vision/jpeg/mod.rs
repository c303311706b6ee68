//! Decodes JPEGs reduced to 1/2, 1/4 or 1/8, directly from the frequencies, and some kinds in full.
//!
//! A photo of twelve megapixels has far more detail than a network's input. Of each block of 8 x 8 pixels only the low
//! frequencies are transformed, into 4 x 4, 2 x 2 or 1 pixels; the others are skipped. `segments` parses the file into
//! a `layout`, and `picture` decodes that: `scan` iterates over the blocks, `sequential` and `progressive` read their
//! coefficients with `bits` and `huffman`, `idct` computes pixels, and `samples` joins the channels.
//!
//! Reads what cameras and editors write: baseline, extended and progressive Huffman coding, 8 bits, one, three or four
//! channels, sampling factors of 1, 2 and 4, restart marks. For anything else, and for damaged files, returns a
//! [`Setback`]; the caller then tries the crate `image`. Knows no orientation and no profiles. No unsafe code; buffer
//! sizes are computed beforehand from checked numbers, and every write stays within them.

mod bits;
mod huffman;
mod idct;
mod layout;
mod picture;
mod progressive;
mod samples;
mod scan;
mod segments;
mod sequential;

use bits::{Bits, Runs};
use huffman::Huffman;
pub(super) use layout::Layout;
pub(super) use samples::Channels;

/// The end marker.
pub(super) const END: [u8; 2] = [0xff, 0xd9];

/// Why this module cannot decode a file.
pub(super) type Setback = &'static str;

/// The only setback that means the file is incomplete.
pub(super) const DATA_ENDS_EARLY: Setback = "the data of a scan end early";

#[cfg(test)]
mod tests;
#[cfg(test)]
use samples::Samples;
