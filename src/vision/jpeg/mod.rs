//! JPEG at a fraction of its size: 1/2, 1/4 or 1/8, straight from the frequencies.
//!
//! A photo of twelve megapixels holds far more than a network's input shows. Of each block of 8 x 8 pixels only the low
//! frequencies are turned into 4 x 4, 2 x 2 or 1 pixels, and what is not needed is stepped over, not computed. The way:
//! `segments` are followed to a `layout`, of which `picture` makes pixels: `scan` walks the blocks, `sequential` and
//! `progressive` read their coefficients with `bits` and `huffman`, `idct` makes pixels of them, `samples` puts the
//! channels together.
//!
//! Reads what cameras and editors write: baseline, extended and progressive Huffman coding, 8 bits, one, three or four
//! channels, sampling factors of 1, 2 and 4, restart marks. Anything else, and anything damaged, is a [`Setback`] and
//! left to the decoder of whole pictures, which has the last word on what is a picture. Knows no orientation and no
//! profiles. No unsafe code; every write is within a buffer whose size was computed beforehand from checked numbers.

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

/// The end mark.
pub(super) const END: [u8; 2] = [0xff, 0xd9];

/// Why the file is not read here.
pub(super) type Setback = &'static str;

/// The one setback that says that the file is not whole.
pub(super) const DATA_ENDS_EARLY: Setback = "the data of a scan end early";

#[cfg(test)]
mod tests;
#[cfg(test)]
use samples::Samples;
