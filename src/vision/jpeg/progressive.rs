//! Progressive coding: coefficients arrive in several scans, a few or a bit at a time; pixels are computed at the end.
//!
//! A scan that holds only coefficients the reduced image does not need is skipped.

use super::{
    Bits, Huffman, Setback,
    idct::{ZIGZAG, fill, invert},
    layout::{Layout, Scan},
    scan::{Carried, Plane, walk},
};

const NO_CODE: Setback = "bits that are no code";
const NO_TABLE: Setback = "a scan without its table";

/// The coefficients of one channel. Of those that a reduced image does not need, only their presence is kept: a
/// refinement has a bit for each present coefficient, so the position of later bits depends on it.
struct Kept {
    /// The number of a block's coefficients whose values are kept.
    n_kept: usize,
    /// The number of a block's coefficients whose presence is known.
    n_known: usize,
    blocks_w: usize,
    /// By block, in the file's order.
    values: Vec<i16>,
    /// By block, a presence bit for each coefficient but the mean.
    present: Vec<u64>,
    /// The quantisation in force at the channel's first scan.
    quant: Option<[f32; 64]>,
}

/// The coefficients of one block.
struct Block<'a> {
    values: &'a mut [i16],
    present: &'a mut u64,
}

/// Returns the number of coefficients whose presence must be known for each block of the channel: those that its pixels
/// need, and all that a scan holds together with one of them, because reading a refinement depends on them.
fn n_known(layout: &Layout<'_>, component_idx: usize, divisor: u32) -> usize {
    let mut last = layout.frame.last_needed(component_idx, divisor);
    let brought = |scan: &&Scan<'_>| scan.parts.iter().any(|part| part.component_idx == component_idx);
    loop {
        let scans = layout.scans.iter().filter(brought).filter(|scan| scan.first <= last);
        let reached = scans.map(|scan| scan.last).max().unwrap_or(0).max(last);
        if reached == last {
            return last + 1;
        }
        last = reached;
    }
}

/// Returns the bytes held for each block of the channel, besides its pixels.
pub(super) fn bytes_per_block(layout: &Layout<'_>, component_idx: usize, divisor: u32) -> usize {
    size_of::<i16>() * (layout.frame.last_needed(component_idx, divisor) + 1) + size_of::<u64>()
}

/// Decodes every scan that affects the result, then computes the planes' pixels.
pub(super) fn decode(layout: &Layout<'_>, divisor: u32, planes: &mut [Plane]) -> Result<(), Setback> {
    let frame = &layout.frame;
    let kept = frame.components.iter().enumerate().map(|(idx, component)| {
        let n_kept = frame.last_needed(idx, divisor) + 1;
        let (blocks_w, blocks_h) = (frame.groups_w * component.h, frame.groups_h * component.v);
        let n_blocks = blocks_w * blocks_h;
        Kept {
            n_kept,
            n_known: n_known(layout, idx, divisor),
            blocks_w,
            values: vec![0; n_kept * n_blocks],
            present: vec![0; n_blocks],
            quant: None,
        }
    });
    let mut kept: Vec<Kept> = kept.collect();
    for scan in &layout.scans {
        read(layout, scan, &mut kept)?;
    }
    for (plane, kept) in planes.iter_mut().zip(&kept) {
        kept.invert(plane)?;
    }
    Ok(())
}

fn read(layout: &Layout<'_>, scan: &Scan<'_>, kept: &mut [Kept]) -> Result<(), Setback> {
    for part in &scan.parts {
        let quant = &mut kept[part.component_idx].quant;
        *quant = quant.or(part.quant);
    }
    let frame = &layout.frame;
    let low_bit = scan.low_bit;
    if scan.first == 0 {
        return walk(frame, scan, |bits, carried, place| {
            let part = &scan.parts[place.part_idx];
            let block = kept[part.component_idx].block(place.block_x, place.block_y).ok_or(NO_CODE)?;
            let mean = block.values.first_mut().ok_or(NO_CODE)?;
            if scan.refines {
                *mean |= (bits.take(1) << low_bit) as i16;
                return Ok(());
            }
            let entry = part.dc.as_ref().ok_or(NO_TABLE)?.peek(bits);
            if entry.is_nothing() || entry.run() > 0 {
                return Err(NO_CODE);
            }
            let sum = &mut carried.means[place.part_idx];
            *sum = sum.wrapping_add(entry.number(bits));
            bits.consume(entry.length() + entry.size());
            *mean = (*sum << low_bit) as i16;
            Ok(())
        });
    }
    let part = &scan.parts[0];
    let kept = &mut kept[part.component_idx];
    if scan.first >= kept.n_known {
        return Ok(());
    }
    let ac = part.ac.as_deref().ok_or(NO_TABLE)?;
    let band = below(scan.last + 1) & !below(scan.first);
    if scan.refines {
        walk(frame, scan, |bits, carried, place| {
            let block = kept.block(place.block_x, place.block_y).ok_or(NO_CODE)?;
            // In a local copy the bits stay in registers.
            let mut own = bits.clone();
            refine(&mut own, ac, carried, block, band, 1 << low_bit)?;
            *bits = own;
            Ok(())
        })
    } else {
        walk(frame, scan, |bits, carried, place| {
            if carried.n_empty > 0 {
                carried.n_empty -= 1;
                return Ok(());
            }
            let block = kept.block(place.block_x, place.block_y).ok_or(NO_CODE)?;
            let mut own = bits.clone();
            begin(&mut own, ac, carried, block, scan, low_bit)?;
            *bits = own;
            Ok(())
        })
    }
}

/// Returns the bits of all coefficients before this one.
#[inline(always)]
fn below(k: usize) -> u64 {
    1u64.checked_shl(k as u32).map_or(u64::MAX, |bit| bit - 1)
}

/// Reads a block's coefficients for the first time (T.81, G.1.2.2).
#[inline(always)]
fn begin(
    bits: &mut Bits<'_>,
    ac: &Huffman,
    carried: &mut Carried,
    block: Block<'_>,
    scan: &Scan<'_>,
    low_bit: u32,
) -> Result<(), Setback> {
    let mut k = scan.first;
    while k <= scan.last {
        let entry = ac.peek(bits);
        if entry.size() > 0 {
            k += entry.run();
            if k > scan.last {
                return Err(NO_CODE);
            }
            *block.present |= 1 << k;
            if let Some(value) = block.values.get_mut(k) {
                *value = (entry.number(bits) << low_bit) as i16;
            }
            bits.consume(entry.length() + entry.size());
            k += 1;
        } else if entry.is_nothing() {
            return Err(NO_CODE);
        } else {
            bits.consume(entry.length());
            if entry.run() < 15 {
                carried.n_empty = (1 << entry.run()) - 1 + bits.take(entry.run() as u32);
                return Ok(());
            }
            k += 16;
        }
    }
    Ok(())
}

/// Reads one more bit of those of a block's coefficients that are in `band` (T.81, G.1.2.3).
#[inline(always)]
fn refine(
    bits: &mut Bits<'_>,
    ac: &Huffman,
    carried: &mut Carried,
    mut block: Block<'_>,
    band: u64,
    bit: i16,
) -> Result<(), Setback> {
    let mut ahead = band;
    while carried.n_empty == 0 && ahead != 0 {
        let entry = ac.peek(bits);
        if entry.is_nothing() || entry.size() > 1 {
            return Err(NO_CODE);
        }
        if entry.size() == 0 && entry.run() < 15 {
            bits.consume(entry.length());
            carried.n_empty = (1 << entry.run()) + bits.take(entry.run() as u32);
            break;
        }
        let new = if bits.peek_behind(entry.length(), 1) == 1 { bit } else { -bit };
        bits.consume(entry.length() + entry.size());
        // The code counts absent coefficients; the present ones before it are corrected on the way.
        let absent = without_first(entry.run(), ahead & !*block.present);
        let place = absent & absent.wrapping_neg();
        let passed = ahead & place.wrapping_sub(1);
        block.correct(bits, passed, bit);
        if entry.size() > 0 && place != 0 {
            *block.present |= place;
            if let Some(value) = block.values.get_mut(place.trailing_zeros() as usize) {
                *value = new;
            }
        }
        ahead &= !(passed | place);
    }
    if carried.n_empty > 0 {
        carried.n_empty -= 1;
        block.correct(bits, ahead, bit);
    }
    Ok(())
}

/// Removes the first `n` places, at most 15. A loop of `n` rounds would mispredict its end for most codes, and
/// refinements consist almost only of codes.
#[inline(always)]
fn without_first(n: usize, mut places: u64) -> u64 {
    let without_one = |places: u64| places & places.wrapping_sub(1);
    if n & 8 != 0 {
        places = (0..8).fold(places, |places, _| without_one(places));
    }
    if n & 4 != 0 {
        places = (0..4).fold(places, |places, _| without_one(places));
    }
    let fewer = without_one(without_one(places));
    places = if n & 2 != 0 { fewer } else { places };
    let fewer = without_one(places);
    if n & 1 != 0 { fewer } else { places }
}

impl Block<'_> {
    /// Reads one more bit of each present coefficient in `places`.
    #[inline(always)]
    fn correct(&mut self, bits: &mut Bits<'_>, places: u64, bit: i16) {
        let there = places & *self.present;
        if there == 0 {
            return;
        }
        let mut kept = there & below(self.values.len());
        let n_unkept = (there & !kept).count_ones();
        while kept != 0 {
            if bits.take(1) == 1
                && let Some(value) = self.values.get_mut(kept.trailing_zeros() as usize)
                && *value & bit == 0
            {
                *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
            }
            kept &= kept - 1;
        }
        bits.skip(n_unkept);
    }
}

impl Kept {
    /// Returns the coefficients of a block, if it exists.
    #[inline(always)]
    fn block(&mut self, block_x: usize, block_y: usize) -> Option<Block<'_>> {
        let block_idx = block_y * self.blocks_w + block_x;
        let start = block_idx * self.n_kept;
        let values = self.values.get_mut(start..start + self.n_kept)?;
        Some(Block { values, present: self.present.get_mut(block_idx)? })
    }

    fn invert(&self, plane: &mut Plane) -> Result<(), Setback> {
        let quant = self.quant.as_ref().ok_or("a channel has no scan")?;
        let (side, stride) = (plane.side, plane.stride);
        for (row_idx, row) in self.values.chunks_exact(self.n_kept * self.blocks_w).enumerate() {
            for (column_idx, coefficients) in row.chunks_exact(self.n_kept).enumerate() {
                let at = plane.place(column_idx, row_idx);
                if coefficients.iter().skip(1).all(|&value| value == 0) {
                    let mean = coefficients.first().map_or(0.0, |&mean| f32::from(mean) * quant[0]);
                    fill(mean, side, &mut plane.samples, at, stride);
                    continue;
                }
                let mut block = [0.0; 64];
                for ((&value, step), &place) in coefficients.iter().zip(quant).zip(&ZIGZAG) {
                    block[usize::from(place)] = f32::from(value) * step;
                }
                invert(&block, side, &mut plane.samples, at, stride);
            }
        }
        Ok(())
    }
}
