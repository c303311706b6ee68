//! Transforms a block's frequencies into its pixels, 8, 4, 2 or 1 a side.
//!
//! An N-point inverse transform of the N lowest frequencies each way yields the block reduced to N pixels a side,
//! without the frequencies that such an image cannot show. It runs in single precision and in one order, so the pixels
//! do not depend on the processor.

/// The position in its block (row by row) of the k-th coefficient of a file.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Returns the index, in the file's order, of the last coefficient that affects `side` pixels a block.
pub(super) fn last_needed(side: usize) -> usize {
    match side {
        1 => 0,
        2 => 4,
        4 => 24,
        _ => 63,
    }
}

/// Dequantised coefficients of one block, row by row.
pub(super) type Block = [f32; 64];

/// Writes the pixels of one block into the plane at `at`, rows `stride` apart. The plane must have room for them.
pub(super) fn invert(block: &Block, side: usize, plane: &mut [u8], at: usize, stride: usize) {
    match side {
        1 => {
            if let Some(pixel) = plane.get_mut(at) {
                *pixel = to_sample(block[0] * 0.125);
            }
        }
        2 => invert_to::<2>(block, &BASIS_2, plane, at, stride),
        4 => invert_to::<4>(block, &BASIS_4, plane, at, stride),
        _ => invert_to::<8>(block, &BASIS_8, plane, at, stride),
    }
}

/// Fills a block that has a mean only.
pub(super) fn fill(mean: f32, side: usize, plane: &mut [u8], at: usize, stride: usize) {
    let sample = to_sample(mean * 0.125);
    for y in 0..side {
        if let Some(row) = plane.get_mut(at + y * stride..at + y * stride + side) {
            row.fill(sample);
        }
    }
}

fn invert_to<const N: usize>(block: &Block, basis: &[[f32; N]; N], plane: &mut [u8], at: usize, stride: usize) {
    // Along the columns: `half[y][v]` for the frequency `v` along the rows.
    let mut half = [[0f32; N]; N];
    for (u, shares) in basis.iter().enumerate() {
        for (row, share) in half.iter_mut().zip(shares) {
            for (v, sum) in row.iter_mut().enumerate() {
                *sum += share * block[u * 8 + v];
            }
        }
    }
    for (y, row) in half.iter().enumerate() {
        let mut sums = [0f32; N];
        for (value, shares) in row.iter().zip(basis) {
            for (sum, share) in sums.iter_mut().zip(shares) {
                *sum += value * share;
            }
        }
        if let Some(to) = plane.get_mut(at + y * stride..at + y * stride + N) {
            to.copy_from_slice(&sums.map(to_sample));
        }
    }
}

/// Adds the middle grey, clamps to a byte and rounds to nearest: adding 2^23 leaves the rounded number in the low bits.
#[inline(always)]
fn to_sample(value: f32) -> u8 {
    ((value + 128.0).clamp(0.0, 255.0) + 8_388_608.0).to_bits() as u8
}

const BASIS_2: [[f32; 2]; 2] = basis();
const BASIS_4: [[f32; 4]; 4] = basis();
const BASIS_8: [[f32; 8]; 8] = basis();

/// `basis[u][x]`: the contribution of frequency `u` to pixel `x`, in each direction.
const fn basis<const N: usize>() -> [[f32; N]; N] {
    let mut basis = [[0.0; N]; N];
    let mut u = 0;
    while u < N {
        let mut x = 0;
        while x < N {
            let scale = if u == 0 { std::f32::consts::FRAC_1_SQRT_2 } else { 1.0 };
            basis[u][x] = 0.5 * scale * cosine((2 * x + 1) * u * (8 / N));
            x += 1;
        }
        u += 1;
    }
    basis
}

/// Returns the cosine of `sixteenths` sixteenths of pi.
const fn cosine(sixteenths: usize) -> f32 {
    const QUARTER: [f32; 9] = [
        1.0,
        0.980_785_3,
        0.923_879_5,
        0.831_469_6,
        std::f32::consts::FRAC_1_SQRT_2,
        0.555_570_25,
        0.382_683_43,
        0.195_090_32,
        0.0,
    ];
    let around = sixteenths % 32;
    let half = if around > 16 { 32 - around } else { around };
    if half > 8 { -QUARTER[16 - half] } else { QUARTER[half] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_met() {
        // Coefficients whose pixels stay within a byte.
        let mut block = [0.0; 64];
        for (k, value) in [(0, 200.0), (1, -90.0), (8, 55.0), (9, 31.0), (2, 20.0), (18, -13.0), (27, 11.0)] {
            block[k] = value;
        }
        for side in [1usize, 2, 4, 8] {
            let mut plane = [0; 64];
            invert(&block, side, &mut plane, 0, 8);
            for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                let wave = |position: usize, frequency: usize| {
                    let scale = if frequency == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
                    let angle = (2 * position + 1) as f64 * frequency as f64 * std::f64::consts::PI / (2 * side) as f64;
                    scale * angle.cos() / 2.0
                };
                let value = (0..side)
                    .flat_map(|u| (0..side).map(move |v| (u, v)))
                    .map(|(u, v)| f64::from(block[u * 8 + v]) * wave(y, u) * wave(x, v))
                    .sum::<f64>();
                let difference = (value + 128.0 - f64::from(plane[y * 8 + x])).abs();
                assert!(difference <= 0.501, "{side}: {y} {x}: {difference}");
            }
        }
    }

    #[test]
    fn samples_stay_within_a_byte() {
        for (value, sample) in [(-1e9, 0), (-128.4, 0), (0.4, 128), (0.6, 129), (127.4, 255), (1e9, 255)] {
            assert_eq!(to_sample(value), sample);
        }
    }

    #[test]
    fn every_needed_coefficient_is_kept() {
        for side in [1, 2, 4, 8] {
            let last = ZIGZAG.iter().rposition(|&at| usize::from(at) / 8 < side && usize::from(at) % 8 < side);
            assert_eq!(last, Some(last_needed(side)));
        }
    }
}
