//! Joins the channels of an image pixel by pixel.

use std::borrow::Cow;

use super::{Setback, scan::Plane};

/// The meaning of a pixel's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Channels {
    /// Brightness alone.
    Grey,
    /// Red, green, blue.
    Rgb,
    /// Amounts of cyan, magenta, yellow and black ink, 0 for none.
    Cmyk,
}

/// An image in its stored colours, at the reduced size.
pub(in super::super) struct Samples {
    pub(in super::super) width_px: usize,
    pub(in super::super) height_px: usize,
    pub(in super::super) channels: Channels,
    /// Rows from the top, channels interleaved.
    pub(in super::super) bytes: Vec<u8>,
}

impl Samples {
    /// Joins one, three or four planes. Without Adobe's segment, three are YCbCr as in JFIF, and four are inks; with
    /// it, inks are stored inverted.
    pub(super) fn join(planes: &[Plane], width: usize, height: usize, adobe: Option<u8>) -> Result<Self, Setback> {
        let channels = match planes.len() {
            1 => Channels::Grey,
            3 => Channels::Rgb,
            4 => Channels::Cmyk,
            _ => return Err("an unsupported number of channels"),
        };
        let mut bytes = vec![0; width * height * planes.len()];
        for (y, to) in bytes.chunks_exact_mut(width * planes.len()).enumerate() {
            match planes {
                [grey] => to.copy_from_slice(&grey.row(y, width)?),
                [a, b, c] => {
                    let (a, b, c) = (a.row(y, width)?, b.row(y, width)?, c.row(y, width)?);
                    let pixels = to.chunks_exact_mut(3).zip(a.iter()).zip(b.iter()).zip(c.iter());
                    if adobe == Some(0) {
                        pixels.for_each(|(((to, &a), &b), &c)| to.copy_from_slice(&[a, b, c]));
                    } else {
                        pixels.for_each(|(((to, &a), &b), &c)| to.copy_from_slice(&rgb(a, b, c)));
                    }
                }
                [a, b, c, k] => {
                    let (a, b, c, k) = (a.row(y, width)?, b.row(y, width)?, c.row(y, width)?, k.row(y, width)?);
                    let pixels = to.chunks_exact_mut(4).zip(a.iter()).zip(b.iter()).zip(c.iter()).zip(k.iter());
                    pixels.for_each(|((((to, &a), &b), &c), &k)| to.copy_from_slice(&inks([a, b, c, k], adobe)));
                }
                _ => {}
            }
        }
        Ok(Self { width_px: width, height_px: height, channels, bytes })
    }
}

impl Plane {
    /// Returns a row of the image, with samples repeated if the channel has fewer.
    fn row(&self, y: usize, width: usize) -> Result<Cow<'_, [u8]>, Setback> {
        let start = y / self.v_repeat * self.stride;
        let row = self.samples.get(start..start + width.div_ceil(self.h_repeat)).ok_or("a channel is too small")?;
        Ok(match self.h_repeat {
            1 => Cow::Borrowed(row),
            n => Cow::Owned(row.iter().flat_map(|&sample| std::iter::repeat_n(sample, n)).take(width).collect()),
        })
    }
}

/// Converts JFIF's YCbCr to RGB, in integers with 16 fractional bits.
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let y = (i32::from(y) << 16) + (1 << 15);
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    let channel = |value: i32| (value >> 16).clamp(0, 255) as u8;
    [channel(y + 91_881 * cr), channel(y - 22_554 * cb - 46_802 * cr), channel(y + 116_130 * cb)]
}

fn inks([a, b, c, k]: [u8; 4], adobe: Option<u8>) -> [u8; 4] {
    match adobe {
        // YCCK: Y, Cb and Cr encode the inverted light that the inks leave. The two inversions cancel out, so only K is
        // inverted.
        Some(2) => {
            let [a, b, c] = rgb(a, b, c);
            [a, b, c, 255 - k]
        }
        Some(_) => [a, b, c, k].map(|ink| 255 - ink),
        None => [a, b, c, k],
    }
}
