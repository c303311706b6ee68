//! Baseline and extended sequential coding: each block's coefficients arrive together, so its pixels are computed at
//! once.

use super::{
    Bits, Huffman, Setback,
    idct::{Block, ZIGZAG, fill, invert, last_needed},
    layout::{Layout, ScanComponent},
    scan::{Plane, walk},
};

const NO_CODE: Setback = "bits that are no code";

/// The tables that one channel's blocks are read with.
struct Reader<'a> {
    dc: &'a Huffman,
    ac: &'a Huffman,
    quant: &'a [f32; 64],
    last_needed: usize,
}

/// Decodes every scan into the planes.
pub(super) fn decode(layout: &Layout<'_>, planes: &mut [Plane]) -> Result<(), Setback> {
    let mut seen = [false; 4];
    for scan in &layout.scans {
        let readers = scan.parts.iter().map(|part| Reader::new(part, planes)).collect::<Result<Vec<_>, _>>()?;
        let mut block = [0.0; 64];
        walk(&layout.frame, scan, |bits, carried, place| {
            let (part, reader) = (&scan.parts[place.part_idx], &readers[place.part_idx]);
            let plane = &mut planes[part.component_idx];
            let n_coefficients = reader.read(bits, &mut carried.means[place.part_idx], &mut block)?;
            let (at, side, stride) = (plane.place(place.block_x, place.block_y), plane.side, plane.stride);
            if n_coefficients == 1 {
                fill(block[0], side, &mut plane.samples, at, stride);
            } else {
                invert(&block, side, &mut plane.samples, at, stride);
                block = [0.0; 64];
            }
            Ok(())
        })?;
        scan.parts.iter().for_each(|part| seen[part.component_idx] = true);
    }
    if seen[..planes.len()].contains(&false) {
        return Err("a channel has no scan");
    }
    Ok(())
}

impl<'a> Reader<'a> {
    fn new(part: &'a ScanComponent, planes: &[Plane]) -> Result<Self, Setback> {
        let (Some(dc), Some(ac), Some(quant)) = (&part.dc, &part.ac, &part.quant) else {
            return Err("a scan without its tables");
        };
        Ok(Self { dc, ac, quant, last_needed: last_needed(planes[part.component_idx].side) })
    }

    /// Reads one block and writes its coefficients up to the last one needed. Returns how many it wrote, including the
    /// mean.
    fn read(&self, bits: &mut Bits<'_>, mean: &mut i32, block: &mut Block) -> Result<usize, Setback> {
        // In a local copy the bits stay in registers.
        let mut own = bits.clone();
        let n_coefficients = self.read_from(&mut own, mean, block)?;
        *bits = own;
        Ok(n_coefficients)
    }

    #[inline(always)]
    fn read_from(&self, bits: &mut Bits<'_>, mean: &mut i32, block: &mut Block) -> Result<usize, Setback> {
        let entry = self.dc.peek(bits);
        if entry.is_nothing() || entry.run() > 0 {
            return Err(NO_CODE);
        }
        *mean = mean.wrapping_add(entry.number(bits));
        bits.consume(entry.length() + entry.size());
        block[0] = *mean as f32 * self.quant[0];
        let mut n_coefficients = 1;
        let mut k = 1;
        while k <= self.last_needed {
            let entry = self.ac.peek(bits);
            if entry.size() > 0 {
                k += entry.run();
                let number = entry.number(bits);
                bits.consume(entry.length() + entry.size());
                let (Some(&place), Some(step)) = (ZIGZAG.get(k), self.quant.get(k)) else { return Err(NO_CODE) };
                block[usize::from(place) % 64] = number as f32 * step;
                n_coefficients += 1;
                k += 1;
            } else if entry.is_nothing() {
                return Err(NO_CODE);
            } else {
                bits.consume(entry.length());
                if entry.run() < 15 {
                    return Ok(n_coefficients);
                }
                k += 16;
            }
        }
        self.pass_over(bits, k)?;
        Ok(n_coefficients)
    }

    /// Skips to the block's end without decoding values.
    #[inline(always)]
    fn pass_over(&self, bits: &mut Bits<'_>, mut k: usize) -> Result<(), Setback> {
        while k < 64 {
            let entry = self.ac.peek(bits);
            bits.consume(entry.length() + entry.size());
            k += entry.run() + 1;
            if entry.size() == 0 && entry.run() < 15 {
                return if entry.is_nothing() { Err(NO_CODE) } else { Ok(()) };
            }
        }
        if k > 64 { Err(NO_CODE) } else { Ok(()) }
    }
}
