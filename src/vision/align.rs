//! Cuts a face out of a photo as a chip: rotated upright, and always at the same position and size.

use super::{DecodedImage, Pixels, Point, geometry::Similarity};

/// The geometry of a network's chips; part of its version's manifest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChipSettings {
    /// Width and height of the chip in pixels, 2 or more.
    pub side_px: u32,
    /// The margin around the face at each edge, as a fraction of the face's side.
    pub padding: f64,
    /// The alignment points of an average face, in the unit square without padding.
    pub template: [Point; 5],
}

/// A face cut out of a photo.
#[derive(Clone, Debug, PartialEq)]
pub struct FaceChip {
    /// The chip's pixels; black beyond the photo's edges.
    pub pixels: Pixels,
    /// The fraction of the chip's pixels that lie within the photo, 0 to 1.
    pub visible: f32,
    /// The root-mean-square distance of the alignment points from the template, in sides of the unit square.
    pub misfit: f32,
}

/// Cuts out the face with these alignment points, in pixels of `photo`.
///
/// Resamples like dlib's `get_face_chip`, because dlib's networks were trained on its chips. The photo around the face
/// is halved until a pixel of the chip covers less than two of its pixels, and then interpolated.
#[must_use]
pub fn cut_chip(photo: &DecodedImage, alignment: &[Point; 5], settings: &ChipSettings) -> FaceChip {
    let side = f64::from(settings.side_px);
    let to_photo = Similarity::fit(&settings.template, alignment);
    let misfit = misfit(&to_photo, &settings.template, alignment);
    // From a chip's pixel to the unit square: its pixels' centres lie within the padded square.
    let step = (1.0 + 2.0 * settings.padding) / side.max(1.0);
    let in_square = |pixel: u32| (f64::from(pixel) + 0.5) * step - settings.padding;
    let patch = Patch::around(photo, &to_photo, settings);
    let mut rgb = Vec::with_capacity((side * side) as usize * 3);
    let mut n_visible = 0_u32;
    for y in 0..settings.side_px {
        for x in 0..settings.side_px {
            let pixel = patch.read(to_photo.apply(in_square(x), in_square(y)));
            n_visible += u32::from(pixel.is_some());
            rgb.extend_from_slice(&pixel.unwrap_or([0; 3]));
        }
    }
    let n_pixels = (settings.side_px * settings.side_px).max(1);
    FaceChip {
        pixels: Pixels { side_px: settings.side_px, rgb: rgb.into() },
        visible: n_visible as f32 / n_pixels as f32,
        misfit,
    }
}

/// Returns how many pixels of the photo, along a line, a pixel of the chip covers. Below 1, the chip is an enlargement.
#[must_use]
pub fn pixels_shown(alignment: &[Point; 5], settings: &ChipSettings) -> f64 {
    shown(&Similarity::fit(&settings.template, alignment), settings)
}

fn shown(to_photo: &Similarity, settings: &ChipSettings) -> f64 {
    to_photo.scale() * (1.0 + 2.0 * settings.padding) / f64::from(settings.side_px.max(1))
}

fn misfit(to_photo: &Similarity, template: &[Point; 5], alignment: &[Point; 5]) -> f32 {
    let squares = template.iter().zip(alignment).map(|(from, to)| {
        let (x, y) = to_photo.apply(from.x.into(), from.y.into());
        (x - f64::from(to.x)).powi(2) + (y - f64::from(to.y)).powi(2)
    });
    let scale = to_photo.scale().max(f64::MIN_POSITIVE);
    ((squares.sum::<f64>() / 5.0).sqrt() / scale) as f32
}

/// The photo around a face, halved as often as needed.
struct Patch {
    left: f64,
    top: f64,
    /// Pixels of the photo per pixel of the patch, along a line.
    scale: f64,
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Patch {
    fn around(photo: &DecodedImage, to_photo: &Similarity, settings: &ChipSettings) -> Self {
        let (near, far) = (-settings.padding, 1.0 + settings.padding);
        let corners = [(near, near), (far, near), (near, far), (far, far)].map(|(x, y)| to_photo.apply(x, y));
        let span = |values: [f64; 4], side: u32| {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Halving and interpolation need some pixels beyond the corners. Casts saturate.
            let first = ((least - 8.0).floor().max(0.0) as usize).min(side as usize - 1);
            let end = ((most + 9.0).ceil().max(0.0) as usize).clamp(first + 1, side as usize);
            (first, end)
        };
        let (left, right) = span(corners.map(|c| c.0), photo.width_px());
        let (top, bottom) = span(corners.map(|c| c.1), photo.height_px());
        let row_bytes = photo.width_px() as usize * 3;
        let rows = photo.rgb().chunks_exact(row_bytes).skip(top).take(bottom - top);
        let rgb = rows.flat_map(|row| &row[left * 3..right * 3]).copied().collect();
        let (left_px, top_px) = (left as f64, top as f64);
        let mut patch = Self { left: left_px, top: top_px, scale: 1.0, width: right - left, height: bottom - top, rgb };
        let shown = shown(to_photo, settings);
        while shown / patch.scale > 2.0 && patch.width > 1 && patch.height > 1 {
            patch.halve();
        }
        patch
    }

    /// Halves both sides by the binomial filter 1 4 6 4 1, sampled at every second pixel; edge pixels are repeated.
    fn halve(&mut self) {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let mut narrow = vec![0_u16; width * self.height * 3];
        for (row, to) in self.rgb.chunks_exact(self.width * 3).zip(narrow.chunks_exact_mut(width * 3)) {
            for x in 0..width {
                let pixels = taps(2 * x, self.width).map(|i| &row[i * 3..i * 3 + 3]);
                for channel in 0..3 {
                    to[x * 3 + channel] = binomial(pixels.map(|p| u32::from(p[channel]))) as u16;
                }
            }
        }
        let row_values = width * 3;
        let mut rgb = vec![0_u8; row_values * height];
        for (y, to) in rgb.chunks_exact_mut(row_values).enumerate() {
            let rows = taps(2 * y, self.height).map(|i| &narrow[i * row_values..(i + 1) * row_values]);
            for (i, value) in to.iter_mut().enumerate() {
                // Both passes multiply by 16; rounded to nearest, at most 255.
                *value = ((binomial(rows.map(|row| u32::from(row[i]))) + 128) / 256) as u8;
            }
        }
        (self.width, self.height, self.rgb) = (width, height, rgb);
        self.scale *= 2.0;
    }

    /// Interpolates the colour at a point of the photo from the four nearest pixels; `None` outside.
    fn read(&self, (x, y): (f64, f64)) -> Option<[u8; 3]> {
        let (x, y) = ((x - self.left) / self.scale, (y - self.top) / self.scale);
        let inside = |at: f64, n: usize| at >= 0.0 && at <= (n - 1) as f64;
        if !inside(x, self.width) || !inside(y, self.height) {
            return None;
        }
        let (column, row) = (x as usize, y as usize);
        let (right, below) = ((column + 1).min(self.width - 1), (row + 1).min(self.height - 1));
        let (fx, fy) = ((x - column as f64) as f32, (y - row as f64) as f32);
        let value = |x: usize, y: usize, channel: usize| f32::from(self.rgb[(y * self.width + x) * 3 + channel]);
        Some(std::array::from_fn(|c| {
            let upper = value(column, row, c) * (1.0 - fx) + value(right, row, c) * fx;
            let lower = value(column, below, c) * (1.0 - fx) + value(right, below, c) * fx;
            (upper * (1.0 - fy) + lower * fy).round() as u8
        }))
    }
}

/// Returns the five indices around `at` in a row of `n`, clamped to its ends.
fn taps(at: usize, n: usize) -> [usize; 5] {
    [at.saturating_sub(2), at.saturating_sub(1), at.min(n - 1), (at + 1).min(n - 1), (at + 2).min(n - 1)]
}

fn binomial(v: [u32; 5]) -> u32 {
    v[0] + 4 * v[1] + 6 * v[2] + 4 * v[3] + v[4]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEMPLATE: [Point; 5] = [
        Point { x: 0.25, y: 0.25 },
        Point { x: 0.75, y: 0.25 },
        Point { x: 0.5, y: 0.5 },
        Point { x: 0.3, y: 0.75 },
        Point { x: 0.7, y: 0.75 },
    ];

    fn gradient(width: u32, height: u32) -> DecodedImage {
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 9])).collect();
        DecodedImage::from_rgb(width, height, rgb).unwrap()
    }

    fn placed(scale: f32, angle: f32, x: f32, y: f32) -> [Point; 5] {
        let (sin, cos) = angle.sin_cos();
        TEMPLATE.map(|p| Point { x: scale * (cos * p.x - sin * p.y) + x, y: scale * (sin * p.x + cos * p.y) + y })
    }

    #[test]
    fn an_upright_face_of_the_right_size_is_only_cut() {
        let settings = ChipSettings { side_px: 41, padding: 0.0, template: TEMPLATE };
        let chip = cut_chip(&gradient(200, 200), &placed(41.0, 0.0, 29.5, 59.5), &settings);
        assert!(chip.visible == 1.0 && chip.misfit < 1e-5, "{} {}", chip.visible, chip.misfit);
        let pixel = |x: usize, y: usize| &chip.pixels.rgb[(y * 41 + x) * 3..][..3];
        assert_eq!(pixel(0, 0), [30, 60, 9]);
        assert_eq!(pixel(40, 40), [70, 100, 9]);
    }

    #[test]
    fn a_chip_shows_so_many_pixels_of_the_photo() {
        let settings = ChipSettings { side_px: 50, padding: 0.25, template: TEMPLATE };
        // With its room the face takes three halves of its hundred pixels.
        assert!((pixels_shown(&placed(100.0, 0.7, 3.0, 9.0), &settings) - 3.0).abs() < 1e-6);
        assert!(pixels_shown(&placed(20.0, 0.0, 0.0, 0.0), &settings) < 1.0);
    }

    #[test]
    fn a_turned_face_is_set_upright() {
        let settings = ChipSettings { side_px: 41, padding: 0.0, template: TEMPLATE };
        // A quarter turn about the upper left corner of the face at (100, 60): its x runs down the photo.
        let landmarks = placed(41.0, std::f32::consts::FRAC_PI_2, 100.5, 59.5);
        let chip = cut_chip(&gradient(200, 200), &landmarks, &settings);
        let pixel = |x: usize, y: usize| &chip.pixels.rgb[(y * 41 + x) * 3..][..3];
        assert_eq!(pixel(0, 0), [100, 60, 9]);
        assert_eq!(pixel(40, 0), [100, 100, 9]);
        assert_eq!(pixel(0, 40), [60, 60, 9]);
    }

    #[test]
    fn beyond_the_photo_it_is_black_and_says_how_much() {
        let settings = ChipSettings { side_px: 40, padding: 0.5, template: TEMPLATE };
        let chip = cut_chip(&gradient(60, 60), &placed(60.0, 0.0, 0.0, 0.0), &settings);
        assert_eq!(chip.pixels.rgb[..3], [0, 0, 0]);
        assert!((0.2..0.3).contains(&chip.visible), "{}", chip.visible);
    }

    #[test]
    fn a_large_face_is_averaged_not_picked() {
        let rgb = (0..256 * 256).flat_map(|i| [if (i % 256 + i / 256) % 2 == 0 { 255 } else { 0 }; 3]).collect();
        let chequered = DecodedImage::from_rgb(256, 256, rgb).unwrap();
        let settings = ChipSettings { side_px: 32, padding: 0.0, template: TEMPLATE };
        let chip = cut_chip(&chequered, &placed(200.0, 0.0, 20.0, 20.0), &settings);
        assert!(chip.pixels.rgb.iter().all(|v| (120..=136).contains(v)), "{:?}", &chip.pixels.rgb[..9]);
    }

    #[test]
    fn five_points_on_one_spot_give_a_chip_all_the_same() {
        let settings = ChipSettings { side_px: 8, padding: 0.25, template: TEMPLATE };
        let chip = cut_chip(&gradient(20, 20), &[Point { x: 5.0, y: 5.0 }; 5], &settings);
        assert_eq!(chip.pixels.rgb.len(), 8 * 8 * 3);
        let nowhere = cut_chip(&gradient(20, 20), &[Point { x: f32::NAN, y: 5.0 }; 5], &settings);
        assert_eq!(nowhere.visible, 0.0);
    }

    proptest! {
        #[test]
        fn the_fit_finds_what_was_done(scale in 5.0..500.0f32, angle in -3.0..3.0f32, x in -500.0..500.0f32, y in -500.0..500.0f32) {
            let to = placed(scale, angle, x, y);
            let fit = Similarity::fit(&TEMPLATE, &to);
            prop_assert!((fit.scale() / f64::from(scale) - 1.0).abs() < 1e-3);
            for (from, to) in TEMPLATE.iter().zip(&to) {
                let (u, v) = fit.apply(from.x.into(), from.y.into());
                prop_assert!((u - f64::from(to.x)).abs() < 1e-2 && (v - f64::from(to.y)).abs() < 1e-2);
            }
            let chip = cut_chip(&gradient(50, 40), &to, &ChipSettings { side_px: 16, padding: 0.2, template: TEMPLATE });
            prop_assert!((0.0..=1.0).contains(&chip.visible));
        }
    }
}
