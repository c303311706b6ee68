//! Decodes a [`Layout`] to an image, and estimates the memory for it.

use super::{
    Setback,
    layout::{Component, Layout},
    progressive,
    samples::Samples,
    scan::Plane,
    sequential,
};

impl Layout<'_> {
    /// Returns an upper bound of the bytes that [`Self::decode`] allocates.
    pub(in super::super) fn alloc_bytes(&self, divisor: u32) -> u64 {
        let frame = &self.frame;
        let held = |(idx, component): (usize, &Component)| {
            let (side, _, _) = frame.plane_shape(idx, divisor);
            let n_blocks = frame.groups_w * component.h * frame.groups_h * component.v;
            let kept = if frame.progressive { progressive::bytes_per_block(self, idx, divisor) } else { 0 };
            n_blocks as u64 * (side * side + kept) as u64
        };
        let blocks: u64 = frame.components.iter().enumerate().map(held).sum();
        let pixels = (frame.width.div_ceil(divisor as usize) * frame.height.div_ceil(divisor as usize)) as u64;
        let data = self.scans.iter().map(|scan| scan.data.len()).max().unwrap_or(0);
        blocks + pixels * frame.components.len() as u64 + data as u64
    }

    /// Decodes the image with each side divided by 1, 2, 4 or 8, rounded up.
    pub(in super::super) fn decode(&self, divisor: u32) -> Result<Samples, Setback> {
        let shapes = self.frame.components.iter().enumerate();
        let mut planes: Vec<Plane> = shapes
            .map(|(idx, component)| {
                let (side, h_repeat, v_repeat) = self.frame.plane_shape(idx, divisor);
                let (width, height) =
                    (self.frame.groups_w * component.h * side, self.frame.groups_h * component.v * side);
                Plane { side, h_repeat, v_repeat, stride: width, samples: vec![0; width * height] }
            })
            .collect();
        if self.frame.progressive {
            progressive::decode(self, divisor, &mut planes)?;
        } else {
            sequential::decode(self, &mut planes)?;
        }
        let side = |full: usize| full.div_ceil(divisor as usize);
        Samples::join(&planes, side(self.frame.width), side(self.frame.height), self.adobe_transform)
    }
}
