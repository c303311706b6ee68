//! Parses a file's segments into its [`Layout`].

use std::sync::Arc;

use super::{
    super::container::{MAX_JPEG_SCANS, next_mark},
    Huffman, Setback,
    layout::{Component, Frame, Layout, Scan, ScanComponent},
};

const CUT_SHORT: Setback = "a segment is cut short";

#[derive(Clone, Copy)]
struct TableSpec<'a> {
    counts: &'a [u8; 16],
    symbols: &'a [u8],
}

/// The definitions in force while segments are parsed. Huffman tables are built only when a scan uses them.
#[derive(Default)]
struct Parser<'a> {
    specs: [[Option<TableSpec<'a>>; 4]; 2],
    quants: [Option<[f32; 64]>; 4],
    restart_interval: usize,
    frame: Option<Frame>,
    scans: Vec<Scan<'a>>,
    adobe_transform: Option<u8>,
    claims_profile: bool,
}

/// What a step along the segments found.
enum Step {
    /// A scan and its data.
    Scan,
    /// The end marker.
    End,
    /// Any other segment.
    On,
}

impl<'a> Layout<'a> {
    /// Parses the segments of a complete file.
    pub(in super::super) fn read(bytes: &'a [u8]) -> Result<Self, Setback> {
        let mut parser = Parser::default();
        let mut rest = bytes.get(2..).ok_or(CUT_SHORT)?;
        while !matches!(parser.step(&mut rest)?, Step::End) {}
        parser.finish()
    }

    /// Parses the segments of a file without a proper end. Also returns the position where its last scan's data ends.
    pub(in super::super) fn read_unended(bytes: &'a [u8]) -> Result<(Self, usize), Setback> {
        let mut parser = Parser::default();
        let mut rest = bytes.get(2..).ok_or(CUT_SHORT)?;
        let mut end = None;
        loop {
            match parser.step(&mut rest) {
                Ok(Step::Scan) if parser.scans.len() > MAX_JPEG_SCANS as usize => return Err("it has too many scans"),
                Ok(Step::Scan) => end = Some(bytes.len() - rest.len()),
                Ok(Step::On) => {}
                Ok(Step::End) | Err(_) => break,
            }
        }
        Ok((parser.finish()?, end.ok_or("it has no scan")?))
    }
}

impl<'a> Parser<'a> {
    /// Parses the next segment; for a scan, its data, too.
    fn step(&mut self, rest: &mut &'a [u8]) -> Result<Step, Setback> {
        let mark = next_mark(rest).ok_or(CUT_SHORT)?;
        let after_mark = &rest[mark + 1..];
        let (&code, after) = after_mark.split_first().ok_or(CUT_SHORT)?;
        if code == 0xff {
            *rest = after_mark;
            return Ok(Step::On);
        }
        *rest = after;
        match code {
            0x00 | 0x01 | 0xd0..=0xd8 => return Ok(Step::On),
            0xd9 => return Ok(Step::End),
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or(CUT_SHORT)?));
        let body = rest.get(2..length).ok_or(CUT_SHORT)?;
        *rest = &rest[length..];
        match code {
            0xc0..=0xc2 => self.frame(code, body)?,
            0xc4 => self.huffman(body)?,
            0xc3 | 0xc5..=0xcf => return Err("a coding that is not read at a reduced size"),
            0xda => {
                *rest = self.scan(body, rest)?;
                return Ok(Step::Scan);
            }
            0xdb => self.quantisation(body)?,
            0xdc => return Err("its height follows its pixels"),
            0xdd => self.restart_interval = u16::from_be_bytes(*body.first_chunk().ok_or(CUT_SHORT)?).into(),
            0xe2 if body.starts_with(b"ICC_PROFILE\0") => self.claims_profile = true,
            0xee if body.starts_with(b"Adobe") => self.adobe_transform = body.get(11).copied(),
            _ => {}
        }
        Ok(Step::On)
    }

    fn finish(self) -> Result<Layout<'a>, Setback> {
        let Self { scans, adobe_transform, claims_profile, .. } = self;
        let frame = self.frame.ok_or("it has no frame")?;
        Ok(Layout { frame, scans, adobe_transform, claims_profile })
    }

    fn frame(&mut self, code: u8, body: &[u8]) -> Result<(), Setback> {
        let [8, y1, y0, x1, x0, n_components, channels @ ..] = body else { return Err("not eight bits a sample") };
        let height = usize::from(u16::from_be_bytes([*y1, *y0]));
        let width = usize::from(u16::from_be_bytes([*x1, *x0]));
        let n_components = usize::from(*n_components);
        if self.frame.is_some() || width == 0 || height == 0 || !matches!(n_components, 1 | 3 | 4) {
            return Err("a frame that is not read at a reduced size");
        }
        let mut components = Vec::with_capacity(n_components);
        for channel in channels.get(..3 * n_components).ok_or(CUT_SHORT)?.chunks_exact(3) {
            // A single channel is not interleaved, whatever its factors are.
            let factors = if n_components == 1 { 0x11 } else { channel[1] };
            let (h, v) = (usize::from(factors >> 4), usize::from(factors & 15));
            let quant_idx = usize::from(channel[2]);
            if !matches!(h, 1 | 2 | 4) || !matches!(v, 1 | 2 | 4) || quant_idx > 3 {
                return Err("sampling factors that are not read at a reduced size");
            }
            components.push(Component { id: channel[0], h, v, blocks_w: 0, blocks_h: 0, quant_idx });
        }
        let h_max = components.iter().map(|c| c.h).max().unwrap_or(1);
        let v_max = components.iter().map(|c| c.v).max().unwrap_or(1);
        for component in &mut components {
            component.blocks_w = (width * component.h).div_ceil(h_max).div_ceil(8);
            component.blocks_h = (height * component.v).div_ceil(v_max).div_ceil(8);
        }
        let (groups_w, groups_h) = (width.div_ceil(8 * h_max), height.div_ceil(8 * v_max));
        let progressive = code == 0xc2;
        self.frame = Some(Frame { width, height, progressive, components, h_max, v_max, groups_w, groups_h });
        Ok(())
    }

    fn huffman(&mut self, mut body: &'a [u8]) -> Result<(), Setback> {
        while let Some((&class_and_idx, after)) = body.split_first() {
            let (counts, after) = after.split_first_chunk::<16>().ok_or(CUT_SHORT)?;
            let n_symbols = counts.iter().map(|&n| usize::from(n)).sum();
            let (symbols, after) = after.split_at_checked(n_symbols).ok_or(CUT_SHORT)?;
            let place = self.specs.get_mut(usize::from(class_and_idx >> 4));
            let place = place.and_then(|class| class.get_mut(usize::from(class_and_idx & 15)));
            *place.ok_or("a Huffman table with an invalid index")? = Some(TableSpec { counts, symbols });
            body = after;
        }
        Ok(())
    }

    fn quantisation(&mut self, mut body: &[u8]) -> Result<(), Setback> {
        while let Some((&depth_and_idx, after)) = body.split_first() {
            let n_bytes = if depth_and_idx >> 4 == 0 { 64 } else { 128 };
            let (values, after) = after.split_at_checked(n_bytes).ok_or(CUT_SHORT)?;
            let mut quant = [0f32; 64];
            for (to, from) in quant.iter_mut().zip(values.chunks_exact(n_bytes / 64)) {
                *to = from.iter().fold(0.0, |value, &byte| value * 256.0 + f32::from(byte));
            }
            let place = self.quants.get_mut(usize::from(depth_and_idx & 15));
            *place.ok_or("a quantisation table with an invalid index")? = Some(quant);
            body = after;
        }
        Ok(())
    }

    /// Parses a scan and returns the bytes behind its data.
    fn scan(&mut self, body: &'a [u8], rest: &'a [u8]) -> Result<&'a [u8], Setback> {
        let frame = self.frame.as_ref().ok_or("a scan before its frame")?;
        let (&n_parts, body) = body.split_first().ok_or(CUT_SHORT)?;
        let (channels, spectrum) = body.split_at_checked(2 * usize::from(n_parts)).ok_or(CUT_SHORT)?;
        let &[first, last, bits] = spectrum.first_chunk().ok_or(CUT_SHORT)?;
        let (first, last, refines, low_bit) =
            if frame.progressive { (first.into(), last.into(), bits >> 4 != 0, bits & 15) } else { (0, 63, false, 0) };
        let sound = first <= last && last < 64 && low_bit < 14 && (1..=4).contains(&n_parts);
        let alone = !frame.progressive || if first == 0 { last == 0 } else { n_parts == 1 };
        if !sound || !alone {
            return Err("a scan with impossible parameters");
        }
        let mut parts: Vec<ScanComponent> = Vec::with_capacity(usize::from(n_parts));
        for channel in channels.chunks_exact(2) {
            let component_idx =
                frame.components.iter().position(|c| c.id == channel[0]).ok_or("a scan of an unknown channel")?;
            if parts.iter().any(|part| part.component_idx == component_idx) {
                return Err("a scan that names a channel twice");
            }
            let table = |class: usize, idx: u8| {
                let spec = self.specs[class].get(usize::from(idx)).copied().flatten();
                spec.map(|spec| Huffman::new(spec.counts, spec.symbols).map(Arc::new)).transpose()
            };
            let dc = if first == 0 && !refines { table(0, channel[1] >> 4)? } else { None };
            let ac = if last > 0 { table(1, channel[1] & 15)? } else { None };
            let quant = self.quants[frame.components[component_idx].quant_idx];
            parts.push(ScanComponent { component_idx, dc, ac, quant });
        }
        let end = end_of_data(rest);
        let (data, rest) = rest.split_at(end);
        let (restart_interval, low_bit) = (self.restart_interval, low_bit.into());
        self.scans.push(Scan { parts, first, last, refines, low_bit, restart_interval, data });
        Ok(rest)
    }
}

/// Returns the position where entropy-coded data ends: at the next mark other than a restart.
fn end_of_data(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(step) = next_mark(&bytes[at..]) {
        at += step;
        match bytes.get(at + 1) {
            Some(0xff) => at += 1,
            Some(0x00 | 0xd0..=0xd7) => at += 2,
            _ => return at,
        }
    }
    bytes.len()
}
