//! Iterates over the blocks of one scan in the file's order.

use super::{
    Bits, DATA_ENDS_EARLY, Runs, Setback,
    layout::{Frame, Scan},
};

/// The pixels of one channel.
pub(super) struct Plane {
    /// The side of a decoded block, in pixels.
    pub(super) side: usize,
    /// How often each sample is repeated to reach the image's size, across and down.
    pub(super) h_repeat: usize,
    pub(super) v_repeat: usize,
    /// The number of samples in a row.
    pub(super) stride: usize,
    pub(super) samples: Vec<u8>,
}

impl Plane {
    /// Returns the index of a block's first pixel.
    #[inline(always)]
    pub(super) fn place(&self, block_x: usize, block_y: usize) -> usize {
        (block_y * self.stride + block_x) * self.side
    }
}

/// The decoder's state from block to block, until a restart mark.
#[derive(Default)]
pub(super) struct Carried {
    /// The last mean of each part's channel.
    pub(super) means: [i32; 4],
    /// The number of following blocks without new data.
    pub(super) n_empty: u32,
}

/// The position of a block.
#[derive(Clone, Copy)]
pub(super) struct BlockPosition {
    pub(super) part_idx: usize,
    pub(super) block_x: usize,
    pub(super) block_y: usize,
}

/// Calls `block` for every block of the scan.
#[inline(always)]
pub(super) fn walk(
    frame: &Frame,
    scan: &Scan<'_>,
    mut block: impl FnMut(&mut Bits<'_>, &mut Carried, BlockPosition) -> Result<(), Setback>,
) -> Result<(), Setback> {
    let runs = Runs::new(scan.data);
    let mut bits = runs.run(0).ok_or(DATA_ENDS_EARLY)?;
    let mut carried = Carried::default();
    let mut run_idx = 0;
    let mut n_left = scan.restart_interval;
    // A scan of one channel stores its blocks row by row, without those that only pad groups.
    let alone = (scan.parts.len() == 1).then(|| &frame.components[scan.parts[0].component_idx]);
    let (n_across, n_down) =
        alone.map_or((frame.groups_w, frame.groups_h), |component| (component.blocks_w, component.blocks_h));
    for y in 0..n_down {
        for x in 0..n_across {
            if scan.restart_interval > 0 {
                if n_left == 0 {
                    if bits.overrun() {
                        return Err(DATA_ENDS_EARLY);
                    }
                    run_idx += 1;
                    bits = runs.run(run_idx).ok_or(DATA_ENDS_EARLY)?;
                    carried = Carried::default();
                    n_left = scan.restart_interval;
                }
                n_left -= 1;
            }
            if alone.is_some() {
                block(&mut bits, &mut carried, BlockPosition { part_idx: 0, block_x: x, block_y: y })?;
                continue;
            }
            for (part_idx, part) in scan.parts.iter().enumerate() {
                let component = &frame.components[part.component_idx];
                for v in 0..component.v {
                    for h in 0..component.h {
                        let (block_x, block_y) = (x * component.h + h, y * component.v + v);
                        block(&mut bits, &mut carried, BlockPosition { part_idx, block_x, block_y })?;
                    }
                }
            }
        }
        if bits.overrun() {
            return Err(DATA_ENDS_EARLY);
        }
    }
    Ok(())
}
