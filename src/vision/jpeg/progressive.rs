//! Progressive coding: coefficients come in several scans, a few or a bit at a time, and pixels at the end.
//!
//! A scan that brings only what the reduced picture does not show is not read at all.

use super::{
    Bits, Huffman, Setback,
    idct::{ZIGZAG, fill, invert},
    layout::{Layout, Scan},
    scan::{Carried, Plane, walk},
};

const NO_CODE: Setback = "bits that are no code";
const NO_TABLE: Setback = "a scan without its table";

/// The coefficients of one channel.
struct Kept {
    /// Coefficients of a block.
    n_kept: usize,
    blocks_w: usize,
    values: Vec<i16>,
    /// The quantisation in force at the channel's first scan.
    quant: Option<[f32; 64]>,
}

/// How many coefficients of each block of the channel are kept: those that its pixels need, and all that a scan brings
/// together with one of them, because a refinement is read by what is there already.
pub(super) fn n_kept(layout: &Layout<'_>, component_idx: usize, divisor: u32) -> usize {
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

/// Decodes every scan that matters, then makes the planes' pixels.
pub(super) fn decode(layout: &Layout<'_>, divisor: u32, planes: &mut [Plane]) -> Result<(), Setback> {
    let frame = &layout.frame;
    let kept = frame.components.iter().enumerate().map(|(idx, component)| {
        let n_kept = n_kept(layout, idx, divisor);
        let (blocks_w, blocks_h) = (frame.groups_w * component.h, frame.groups_h * component.v);
        Kept { n_kept, blocks_w, values: vec![0; n_kept * blocks_w * blocks_h], quant: None }
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
            let block = kept[part.component_idx].block(place.block_x, place.block_y);
            let mean = block.first_mut().ok_or(NO_CODE)?;
            if scan.refines {
                *mean |= (bits.take(1) << low_bit) as i16;
                return Ok(());
            }
            let entry = part.dc.as_ref().ok_or(NO_TABLE)?.look(bits);
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
    if scan.first >= kept.n_kept {
        return Ok(());
    }
    let ac = part.ac.as_deref().ok_or(NO_TABLE)?;
    let range = scan.first..scan.last + 1;
    if scan.refines {
        walk(frame, scan, |bits, carried, place| {
            let band = kept.block(place.block_x, place.block_y).get_mut(range.clone()).ok_or(NO_CODE)?;
            // In a place of their own, the bits stay in registers.
            let mut own = bits.clone();
            refine(&mut own, ac, carried, band, 1 << low_bit)?;
            *bits = own;
            Ok(())
        })
    } else {
        walk(frame, scan, |bits, carried, place| {
            if carried.n_empty > 0 {
                carried.n_empty -= 1;
                return Ok(());
            }
            let band = kept.block(place.block_x, place.block_y).get_mut(range.clone()).ok_or(NO_CODE)?;
            let mut own = bits.clone();
            begin(&mut own, ac, carried, band, low_bit)?;
            *bits = own;
            Ok(())
        })
    }
}

/// A block's coefficients for the first time (T.81, G.1.2.2).
#[inline(always)]
fn begin(
    bits: &mut Bits<'_>,
    ac: &Huffman,
    carried: &mut Carried,
    band: &mut [i16],
    low_bit: u32,
) -> Result<(), Setback> {
    let mut k = 0;
    while k < band.len() {
        let entry = ac.look(bits);
        if entry.size() > 0 {
            k += entry.run();
            *band.get_mut(k).ok_or(NO_CODE)? = (entry.number(bits) << low_bit) as i16;
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

/// One more bit of a block's coefficients (T.81, G.1.2.3).
#[inline(always)]
fn refine(bits: &mut Bits<'_>, ac: &Huffman, carried: &mut Carried, band: &mut [i16], bit: i16) -> Result<(), Setback> {
    let mut k = 0;
    while carried.n_empty == 0 && k < band.len() {
        let entry = ac.look(bits);
        if entry.is_nothing() || entry.size() > 1 {
            return Err(NO_CODE);
        }
        bits.consume(entry.length());
        if entry.size() == 0 && entry.run() < 15 {
            carried.n_empty = (1 << entry.run()) + bits.take(entry.run() as u32);
            break;
        }
        let new = match entry.size() {
            0 => 0,
            _ if bits.take(1) == 1 => bit,
            _ => -bit,
        };
        let mut n_zeros = entry.run();
        while let Some(value) = band.get_mut(k) {
            k += 1;
            if *value != 0 {
                correct(bits, value, bit);
            } else if n_zeros == 0 {
                *value = new;
                break;
            } else {
                n_zeros -= 1;
            }
        }
    }
    if carried.n_empty > 0 {
        carried.n_empty -= 1;
        let rest = band.get_mut(k..).unwrap_or_default();
        // Most often nothing is there, which is told without looking at each.
        if rest.iter().fold(0, |any, &value| any | value) != 0 {
            rest.iter_mut().filter(|value| **value != 0).for_each(|value| correct(bits, value, bit));
        }
    }
    Ok(())
}

#[inline(always)]
fn correct(bits: &mut Bits<'_>, value: &mut i16, bit: i16) {
    if bits.take(1) == 1 && *value & bit == 0 {
        *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
    }
}

impl Kept {
    /// The coefficients of a block, none when there is no such block.
    #[inline(always)]
    fn block(&mut self, block_x: usize, block_y: usize) -> &mut [i16] {
        let start = (block_y * self.blocks_w + block_x) * self.n_kept;
        self.values.get_mut(start..start + self.n_kept).unwrap_or_default()
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
