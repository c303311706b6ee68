//! Reduces a part of an image by averaging areas.

use super::DecodedImage;

/// Writes the part of `photo` at `window` (left, top, width, height; inside the photo, at least one pixel) into `to`
/// with `size` (width, height), rows `to_stride` numbers apart. Each mean is scaled to `(mean - 127.5) / 128`, the
/// input range of the detection networks.
///
/// A pixel is the mean of all pixels that it covers at least in part, as in PyTorch's `interpolate(mode="area")`, with
/// which the published networks were made. An enlargement repeats pixels. Intermediate values are not rounded: rounding
/// would reorder boxes with nearly equal scores.
pub(super) fn area_resize(
    photo: &DecodedImage,
    (left, top, width, height): (u32, u32, u32, u32),
    size: (u32, u32),
    to: &mut [f32],
    to_stride: usize,
) {
    let (width, height) = (width as usize, height as usize);
    let (to_width, to_height) = (size.0 as usize, size.1 as usize);
    let row_bytes = photo.width_px() as usize * 3;
    let from = top as usize * row_bytes + left as usize * 3;
    let columns: Vec<(usize, usize)> = (0..to_width).map(|x| covered(x, to_width, width)).collect();
    let mut sums = vec![0_u32; width * 3];
    for y in 0..to_height {
        let (first, end) = covered(y, to_height, height);
        sums.fill(0);
        for row in first..end {
            let pixels = &photo.rgb()[from + row * row_bytes..][..width * 3];
            for (sum, &value) in sums.iter_mut().zip(pixels) {
                *sum += u32::from(value);
            }
        }
        let to_row = &mut to[y * to_stride..][..to_width * 3];
        for (pixel, &(left, right)) in to_row.chunks_exact_mut(3).zip(&columns) {
            let mut rgb = [0_u32; 3];
            for covered in sums[left * 3..right * 3].chunks_exact(3) {
                rgb[0] += covered[0];
                rgb[1] += covered[1];
                rgb[2] += covered[2];
            }
            let n = ((right - left) * (end - first)) as f32;
            pixel.copy_from_slice(&rgb.map(|sum| (sum as f32 / n - 127.5) / 128.0));
        }
    }
}

/// Returns the start and the end of the range of `of` that position `at` of `n` covers.
fn covered(at: usize, n: usize, of: usize) -> (usize, usize) {
    (at * of / n, ((at + 1) * of).div_ceil(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scaled(value: f32) -> f32 {
        (value - 127.5) / 128.0
    }

    #[test]
    fn each_pixel_is_the_mean_of_what_it_covers() {
        let photo = DecodedImage::from_rgb(5, 1, (0..15).collect()).unwrap();
        let mut to = [0.0; 6];
        area_resize(&photo, (0, 0, 5, 1), (2, 1), &mut to, 6);
        // Pixels 0 to 2, and 2 to 4.
        assert_eq!(to, [3.0, 4.0, 5.0, 9.0, 10.0, 11.0].map(scaled));
        area_resize(&photo, (1, 0, 1, 1), (2, 1), &mut to, 6);
        assert_eq!(to, [3.0, 4.0, 5.0, 3.0, 4.0, 5.0].map(scaled));
    }

    proptest! {
        #[test]
        fn one_colour_stays(width in 1..60u32, height in 1..60u32, to_width in 1..40u32, to_height in 1..40u32, value: u8) {
            let photo = DecodedImage::from_rgb(width, height, vec![value; (width * height * 3) as usize]).unwrap();
            let stride = to_width as usize * 3 + 6;
            let mut to = vec![9.0; stride * to_height as usize];
            area_resize(&photo, (0, 0, width, height), (to_width, to_height), &mut to, stride);
            for row in to.chunks(stride) {
                prop_assert!(row[..to_width as usize * 3].iter().all(|v| (v - scaled(value.into())).abs() < 1e-6));
                prop_assert!(row[to_width as usize * 3..].iter().all(|v| *v == 9.0));
            }
        }
    }
}
