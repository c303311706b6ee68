//! What a file says of itself before any block is read: its frame, its scans, and what they need.

use std::sync::Arc;

use super::{Huffman, Setback, idct::last_needed};

/// A channel of the picture.
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks of one group of interleaved blocks, across and down.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Blocks that hold pixels, across and down.
    pub(super) blocks_w: usize,
    pub(super) blocks_h: usize,
    pub(super) quant_idx: usize,
}

/// The picture's size and how its channels are laid out.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    pub(super) h_max: usize,
    pub(super) v_max: usize,
    /// Groups of interleaved blocks, across and down.
    pub(super) groups_w: usize,
    pub(super) groups_h: usize,
}

/// A channel's part in a scan.
pub(super) struct Part {
    pub(super) component_idx: usize,
    pub(super) dc: Option<Arc<Huffman>>,
    pub(super) ac: Option<Arc<Huffman>>,
    /// The quantisation in force, in the file's order.
    pub(super) quant: Option<[f32; 64]>,
}

/// One pass over blocks.
pub(super) struct Scan<'a> {
    pub(super) parts: Vec<Part>,
    /// First and last coefficient, in the file's order.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Whether it adds a bit to what earlier scans brought.
    pub(super) refines: bool,
    /// The bit that its values begin at.
    pub(super) low_bit: u32,
    /// Groups between restart marks; 0: there are none.
    pub(super) restart_interval: usize,
    pub(super) data: &'a [u8],
}

/// A file, understood as far as that goes without reading a block.
pub(in super::super) struct Layout<'a> {
    pub(super) frame: Frame,
    pub(super) scans: Vec<Scan<'a>>,
    /// Adobe's word on the colours, when it is there.
    pub(super) adobe_transform: Option<u8>,
    /// Whether some segment says that it is a part of an ICC profile.
    pub(in super::super) claims_profile: bool,
}

impl Layout<'_> {
    /// Whether it is read here even when all its pixels are wanted: `image` has no notion of inks, and of channels at a
    /// quarter of the resolution it makes wrong colours.
    pub(in super::super) fn is_for_here(&self) -> bool {
        self.frame.components.len() == 4 || self.frame.h_max == 4 || self.frame.v_max == 4
    }

    /// The picture's width in pixels.
    pub(in super::super) fn width_px(&self) -> u32 {
        // Two bytes of the file.
        self.frame.width as u32
    }

    /// The picture's height in pixels.
    pub(in super::super) fn height_px(&self) -> u32 {
        self.frame.height as u32
    }

    /// The largest divisor at which [`Self::decode`] still reads every bit.
    pub(in super::super) fn divisor_of_all_bits(&self) -> u32 {
        if self.frame.progressive { 1 } else { 8 }
    }

    /// Checks that the scans bring every bit of every coefficient. Of a progressive picture that is cut between two scans,
    /// nothing else tells.
    pub(in super::super) fn check_every_bit(&self) -> Result<(), Setback> {
        if !self.frame.progressive {
            return Ok(());
        }
        let mut low_bits = [[u32::MAX; 64]; 4];
        for scan in &self.scans {
            for part in &scan.parts {
                low_bits[part.component_idx][scan.first..=scan.last].fill(scan.low_bit);
            }
        }
        let all = low_bits[..self.frame.components.len()].iter().flatten().all(|&bit| bit == 0);
        if all { Ok(()) } else { Err("its last scans are missing") }
    }
}

impl Frame {
    /// Pixels that a block of the channel becomes a side, and how often its samples are then repeated across and down.
    /// A channel of lower resolution gives up less of it.
    pub(super) fn plane_shape(&self, component_idx: usize, divisor: u32) -> (usize, usize, usize) {
        let component = &self.components[component_idx];
        let (h_ratio, v_ratio) = (self.h_max / component.h, self.v_max / component.v);
        let least = 8 / divisor as usize;
        let side = (least * h_ratio.min(v_ratio)).min(8);
        (side, h_ratio * least / side, v_ratio * least / side)
    }

    /// The last coefficient, in the file's order, that the channel needs.
    pub(super) fn last_needed(&self, component_idx: usize, divisor: u32) -> usize {
        last_needed(self.plane_shape(component_idx, divisor).0)
    }
}
