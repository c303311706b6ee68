//! The structure of a JPEG, parsed before any block is decoded: its frame, its scans and their tables.

use std::sync::Arc;

use super::{Huffman, Setback, idct::last_needed};

/// A channel of the image.
pub(super) struct Component {
    pub(super) id: u8,
    /// The number of blocks of this channel in one group of interleaved blocks, across and down.
    pub(super) h: usize,
    pub(super) v: usize,
    /// The number of blocks that contain pixels, across and down.
    pub(super) blocks_w: usize,
    pub(super) blocks_h: usize,
    pub(super) quant_idx: usize,
}

/// The image's size and the layout of its channels.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    pub(super) h_max: usize,
    pub(super) v_max: usize,
    /// The number of groups of interleaved blocks, across and down.
    pub(super) groups_w: usize,
    pub(super) groups_h: usize,
}

/// A channel as one scan codes it.
pub(super) struct ScanComponent {
    pub(super) component_idx: usize,
    pub(super) dc: Option<Arc<Huffman>>,
    pub(super) ac: Option<Arc<Huffman>>,
    /// The quantisation in force, in the file's order.
    pub(super) quant: Option<[f32; 64]>,
}

/// One pass over the blocks.
pub(super) struct Scan<'a> {
    pub(super) parts: Vec<ScanComponent>,
    /// First and last coefficient, in the file's order.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Whether it adds one bit to coefficients of earlier scans.
    pub(super) refines: bool,
    /// The lowest bit of its values.
    pub(super) low_bit: u32,
    /// The number of groups between restart marks; 0: no marks.
    pub(super) restart_interval: usize,
    pub(super) data: &'a [u8],
}

/// A parsed file whose blocks are not decoded yet.
pub(in super::super) struct Layout<'a> {
    pub(super) frame: Frame,
    pub(super) scans: Vec<Scan<'a>>,
    /// The colour transform in Adobe's segment, if the file has one.
    pub(super) adobe_transform: Option<u8>,
    /// Whether a segment claims to be part of an ICC profile.
    pub(in super::super) claims_profile: bool,
}

impl Layout<'_> {
    /// Returns true if this module decodes the file even in full size. The crate `image` cannot convert inks, and makes
    /// wrong colours of channels at a quarter of the resolution.
    pub(in super::super) fn needs_this_decoder(&self) -> bool {
        self.frame.components.len() == 4 || self.frame.h_max == 4 || self.frame.v_max == 4
    }

    /// Returns the image's width in pixels.
    pub(in super::super) fn width_px(&self) -> u32 {
        // The file stores it in two bytes.
        self.frame.width as u32
    }

    /// Returns the image's height in pixels.
    pub(in super::super) fn height_px(&self) -> u32 {
        self.frame.height as u32
    }

    /// Returns the largest divisor at which [`Self::decode`] still reads every bit.
    pub(in super::super) fn divisor_of_all_bits(&self) -> u32 {
        if self.frame.progressive { 1 } else { 8 }
    }

    /// Checks that the scans contain every bit of every coefficient. Nothing else detects a progressive image that was
    /// cut between two scans.
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
    /// Returns the side of a decoded block of the channel in pixels, and how often its samples are repeated across and
    /// down. A channel of lower resolution is reduced less.
    pub(super) fn plane_shape(&self, component_idx: usize, divisor: u32) -> (usize, usize, usize) {
        let component = &self.components[component_idx];
        let (h_ratio, v_ratio) = (self.h_max / component.h, self.v_max / component.v);
        let least = 8 / divisor as usize;
        let side = (least * h_ratio.min(v_ratio)).min(8);
        (side, h_ratio * least / side, v_ratio * least / side)
    }

    /// Returns the index, in the file's order, of the last coefficient that the channel needs.
    pub(super) fn last_needed(&self, component_idx: usize, divisor: u32) -> usize {
        last_needed(self.plane_shape(component_idx, divisor).0)
    }
}
