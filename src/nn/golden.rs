//! The outputs that a version had when it was made, and must reproduce wherever it is loaded.

/// The seed of every version's golden input.
pub const GOLDEN_SEED: u64 = 1;

/// The largest allowed difference of a golden output on another machine, relative to the largest output (at least 1).
const TOLERANCE: f32 = 1e-3;

/// A network's outputs for a known input.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// The seed of [`golden_input`].
    pub input_seed: u64,
    /// All outputs, in order.
    pub outputs: Vec<f32>,
    /// The largest allowed absolute difference of an output.
    pub tolerance: f32,
}

impl Golden {
    /// Creates the golden outputs from a network's outputs for the input of [`GOLDEN_SEED`].
    #[must_use]
    pub fn new(outputs: Vec<f32>) -> Self {
        let largest = outputs.iter().fold(1.0_f32, |largest, output| largest.max(output.abs()));
        Self { input_seed: GOLDEN_SEED, outputs, tolerance: TOLERANCE * largest }
    }
}

/// Makes a test image: noise over a gradient, the same for the same seed on every machine.
#[must_use]
pub fn golden_input(seed: u64, side_px: u32) -> Vec<u8> {
    let side = u64::from(side_px);
    // SplitMix64 (Steele, Lea, Flood 2014): a few operations, independent of any library's version.
    let noise = |i: u64| {
        let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 64
    };
    let pixel = |i: u64| {
        let (x, y, channel) = (i / 3 % side, i / 3 / side, i % 3);
        let gradient = match channel {
            0 => x * 191 / side,
            1 => y * 191 / side,
            _ => (x + y) * 95 / side,
        };
        (gradient + noise(i)) as u8
    };
    (0..side * side * 3).map(pixel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_input_is_the_same_everywhere() {
        let image = golden_input(1, 32);
        assert_eq!(crc32fast::hash(&image), 2_736_553_145);
        assert_ne!(image, golden_input(2, 32));
        assert_eq!(image[..6], golden_input(1, 32)[..6]);
    }
}
