//! Predicts a face's five alignment points by an ensemble of regression trees.
//!
//! Kazemi and Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees" (2014), as in dlib. The
//! prediction starts from an average shape in a box. Each tree compares the brightness of pixels, whose positions move
//! with the shape, and corrects the shape a little. The number types have dlib's precision, so that the trees take the
//! same branches. The resulting points are not rounded to whole pixels, unlike dlib's. Brightness is a whole number, so
//! thresholds are rounded down to one, which changes no comparison.

use super::{BoundingBox, DecodedImage, Point, geometry::Similarity};

/// The maximum number of pixels that a cascade compares.
const MAX_PIXELS: usize = 1 << 16;

/// The parameters of a predictor of five points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShapeParts {
    /// The average shape in the unit square.
    pub initial: [Point; 5],
    /// Per cascade and pixel: the index of the point near the pixel, 0 to 4.
    pub anchors: Vec<usize>,
    /// Per cascade and pixel: the pixel's offset from that point, in the unit square of the average shape.
    pub deltas: Vec<Point>,
    /// The number of pixels that a cascade compares, at most 65536.
    pub n_pixels: usize,
    /// Per cascade, tree and split: the two pixels that are compared, below `n_pixels`.
    pub splits: Vec<[usize; 2]>,
    /// Per cascade, tree and split: the difference in brightness, first pixel minus second, above which the left branch
    /// is taken.
    pub thresholds: Vec<f32>,
    /// Per cascade, tree and leaf: the offsets that are added to the shape. A tree has one leaf more than splits.
    pub leaves: Vec<[Point; 5]>,
    /// The number of trees per cascade.
    pub n_trees: usize,
    /// The number of splits per tree: one less than a power of two. Split `i` has the left child `2i + 1` and the right
    /// child `2i + 2`.
    pub n_splits: usize,
}

/// A predictor of five points: the outer and the inner corner of the eye at the image's right, the outer and the inner
/// corner of the eye at the left, and the base of the nose.
#[derive(Clone, Debug)]
pub struct ShapePredictor {
    initial: [Point; 5],
    cascades: Vec<Cascade>,
    n_splits: usize,
}

/// The number of trees evaluated in parallel, so that the processor need not wait for each comparison.
const N_ABREAST: usize = 8;

#[derive(Clone, Debug)]
struct Cascade {
    pixels: Vec<ShapePixel>,
    /// `n_splits` per tree.
    splits: Vec<Split>,
    /// `n_splits + 1` per tree: x and y of each point.
    leaves: Vec<[f32; 10]>,
}

/// A pixel whose position moves with the shape.
#[derive(Clone, Copy, Debug)]
struct ShapePixel {
    /// The index of the point near the pixel.
    anchor: usize,
    /// The pixel's offset from that point.
    delta: Point,
}

/// A split in six bytes, so that a tree of 15 splits fits in two or three cache lines.
#[derive(Clone, Copy, Debug)]
struct Split {
    pixels: [u16; 2],
    threshold: i16,
}

impl Split {
    /// Creates a split; the pixels must be below [`MAX_PIXELS`].
    fn new(pixels: [usize; 2], threshold: f32) -> Self {
        // Differences lie between -255 and 255.
        Self { pixels: pixels.map(|pixel| pixel as u16), threshold: threshold.floor().clamp(-256.0, 255.0) as i16 }
    }
}

impl ShapePredictor {
    /// Creates a predictor. Checks every index, so that [`Self::place`] cannot fail.
    ///
    /// # Errors
    /// The first inconsistency.
    pub fn new(parts: ShapeParts) -> Result<Self, String> {
        let ShapeParts { n_pixels, n_trees, n_splits, .. } = parts;
        let is_full_tree = n_splits.checked_add(1).is_some_and(usize::is_power_of_two) && n_splits > 0;
        if n_pixels == 0 || n_trees == 0 || !is_full_tree {
            return Err(format!("{n_pixels} pixels and {n_trees} trees of {n_splits} splits make no predictor"));
        }
        if n_pixels > MAX_PIXELS {
            return Err(format!("a cascade compares {n_pixels} pixels, more than {MAX_PIXELS}"));
        }
        if parts.initial.iter().all(|point| *point == parts.initial[0]) {
            return Err("all points of the average shape are equal".to_owned());
        }
        let n_cascades = parts.anchors.len() / n_pixels;
        if n_cascades == 0 {
            return Err("there are no cascades".to_owned());
        }
        let n_of_trees = |each: usize| n_trees.saturating_mul(each);
        let expected = [
            ("anchors", parts.anchors.len(), n_pixels),
            ("deltas", parts.deltas.len(), n_pixels),
            ("splits", parts.splits.len(), n_of_trees(n_splits)),
            ("thresholds", parts.thresholds.len(), n_of_trees(n_splits)),
            ("leaves", parts.leaves.len(), n_of_trees(n_splits + 1)),
        ];
        let misfit = expected.into_iter().find(|(_, n, each)| *n != n_cascades.saturating_mul(*each));
        if let Some((name, n, each)) = misfit {
            return Err(format!("{n} {name} where {n_cascades} cascades have {each} each"));
        }
        if let Some(anchor) = parts.anchors.iter().find(|anchor| **anchor >= 5) {
            return Err(format!("a pixel refers to landmark {anchor} of 5"));
        }
        if let Some(pixel) = parts.splits.iter().flatten().find(|pixel| **pixel >= n_pixels) {
            return Err(format!("a split compares pixel {pixel} of {n_pixels}"));
        }
        if parts.thresholds.iter().any(|threshold| threshold.is_nan()) {
            return Err("a threshold is no number".to_owned());
        }
        Ok(Self { initial: parts.initial, cascades: cascades(&parts), n_splits })
    }

    /// Predicts the five points of the face in this box, in pixels of `photo`; see [`ShapePredictor`] for their order.
    ///
    /// The box's corners are rounded to whole pixels, which belong to the box, as in dlib. The box may extend beyond
    /// the photo; pixels there count as black.
    #[must_use]
    pub fn place(&self, photo: &DecodedImage, bounds: &BoundingBox) -> [Point; 5] {
        let frame = Frame::of(bounds);
        let mut shape = self.initial;
        let mut brightness = Vec::new();
        for cascade in &self.cascades {
            let (a, b) = Similarity::fit(&self.initial, &shape).apply_direction(1.0, 0.0);
            let (a, b) = (a as f32, b as f32);
            brightness.clear();
            brightness.extend(cascade.pixels.iter().map(|pixel| {
                let (Point { x, y }, anchor) = (pixel.delta, shape[pixel.anchor]);
                frame.brightness_at(photo, Point { x: a * x - b * y + anchor.x, y: b * x + a * y + anchor.y })
            }));
            let n_trees = cascade.leaves.len() / (self.n_splits + 1);
            for tree in (0..n_trees - n_trees % N_ABREAST).step_by(N_ABREAST) {
                self.add_trees::<N_ABREAST>(cascade, tree, &brightness, &mut shape);
            }
            for tree in n_trees - n_trees % N_ABREAST..n_trees {
                self.add_trees::<1>(cascade, tree, &brightness, &mut shape);
            }
        }
        shape.map(|point| {
            let (x, y) = frame.to_photo(point);
            Point { x: x as f32, y: y as f32 }
        })
    }

    /// Evaluates `N` trees, starting with `first`, and adds their leaves to the shape.
    fn add_trees<const N: usize>(&self, cascade: &Cascade, first: usize, brightness: &[u8], shape: &mut [Point; 5]) {
        let trees: [&[Split]; N] =
            std::array::from_fn(|i| &cascade.splits[(first + i) * self.n_splits..][..self.n_splits]);
        let mut at = [0; N];
        // All trees have the same depth.
        for _ in 0..(self.n_splits + 1).ilog2() {
            for (at, splits) in at.iter_mut().zip(&trees) {
                let Split { pixels: [a, b], threshold } = splits[*at];
                let difference = i16::from(brightness[usize::from(a)]) - i16::from(brightness[usize::from(b)]);
                *at = 2 * *at + 2 - usize::from(difference > threshold);
            }
        }
        for (i, at) in at.into_iter().enumerate() {
            let leaf = &cascade.leaves[(first + i) * (self.n_splits + 1) + at - self.n_splits];
            for (point, step) in shape.iter_mut().zip(leaf.as_chunks::<2>().0) {
                point.x += step[0];
                point.y += step[1];
            }
        }
    }
}

/// Groups checked parameters by cascade.
fn cascades(parts: &ShapeParts) -> Vec<Cascade> {
    let n_splits = parts.n_trees * parts.n_splits;
    let pixels = parts.anchors.chunks_exact(parts.n_pixels).zip(parts.deltas.chunks_exact(parts.n_pixels));
    let splits = parts.splits.chunks_exact(n_splits).zip(parts.thresholds.chunks_exact(n_splits));
    let leaves = parts.leaves.chunks_exact(n_splits + parts.n_trees);
    let cascade = |(((anchors, deltas), (splits, thresholds)), leaves): (_, &[[Point; 5]])| {
        let (anchors, deltas): (&[usize], &[Point]) = (anchors, deltas);
        let (splits, thresholds): (&[[usize; 2]], &[f32]) = (splits, thresholds);
        let pixel = |(&anchor, &delta)| ShapePixel { anchor, delta };
        let split = |(&pixels, &threshold)| Split::new(pixels, threshold);
        let leaf = |points: &[Point; 5]| std::array::from_fn(|i| [points[i / 2].x, points[i / 2].y][i % 2]);
        Cascade {
            pixels: anchors.iter().zip(deltas).map(pixel).collect(),
            splits: splits.iter().zip(thresholds).map(split).collect(),
            leaves: leaves.iter().map(leaf).collect(),
        }
    };
    pixels.zip(splits).zip(leaves).map(cascade).collect()
}

/// Maps the unit square to a box of whole pixels.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    fn of(bounds: &BoundingBox) -> Self {
        let [left, top, right, bottom] =
            [bounds.left, bounds.top, bounds.right, bounds.bottom].map(|edge| nearest(edge.into()));
        Self { left, top, width: right - left, height: bottom - top }
    }

    fn to_photo(&self, point: Point) -> (f64, f64) {
        (self.left + self.width * f64::from(point.x), self.top + self.height * f64::from(point.y))
    }

    /// Returns the mean of the three colours at the nearest pixel, a whole number as in dlib; 0 beyond the photo.
    fn brightness_at(&self, photo: &DecodedImage, point: Point) -> u8 {
        // Adding a half before truncation rounds to the nearest pixel.
        let (x, y) = self.to_photo(point);
        let (x, y) = (x + 0.5, y + 0.5);
        let is_inside = x >= 0.0 && y >= 0.0 && x < f64::from(photo.width_px()) && y < f64::from(photo.height_px());
        if !is_inside {
            return 0;
        }
        let i = (y as usize * photo.width_px() as usize + x as usize) * 3;
        let sum: u16 = photo.rgb()[i..i + 3].iter().map(|&value| u16::from(value)).sum();
        (sum / 3) as u8
    }
}

/// Rounds to the nearest whole number, halves upwards.
fn nearest(value: f64) -> f64 {
    (value + 0.5).floor()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(x: f32, y: f32) -> Point {
        Point { x, y }
    }

    /// One cascade of one tree of one split, which compares the pixels at the first two landmarks.
    fn parts() -> ShapeParts {
        ShapeParts {
            initial: [point(0.2, 0.2), point(0.8, 0.2), point(0.5, 0.5), point(0.3, 0.8), point(0.7, 0.8)],
            anchors: vec![0, 1],
            deltas: vec![point(0.0, 0.0); 2],
            n_pixels: 2,
            splits: vec![[0, 1]],
            thresholds: vec![50.0],
            leaves: vec![[point(0.1, 0.0); 5], [point(0.0, 0.1); 5]],
            n_trees: 1,
            n_splits: 1,
        }
    }

    /// 101 by 101 pixels of two shades.
    fn halves(left: u8, right: u8) -> DecodedImage {
        let rgb = (0..101 * 101).flat_map(|i| [if i % 101 < 50 { left } else { right }; 3]).collect();
        DecodedImage::from_rgb(101, 101, rgb).unwrap()
    }

    fn square(left: f32, top: f32, side: f32) -> BoundingBox {
        BoundingBox { left, top, right: left + side, bottom: top + side }
    }

    #[track_caller]
    fn assert_near(found: Point, x: f32, y: f32) {
        assert!((found.x - x).abs() < 1e-3 && (found.y - y).abs() < 1e-3, "{found:?} is not ({x}, {y})");
    }

    #[test]
    fn a_tree_moves_the_shape_by_what_it_sees() {
        let predictor = ShapePredictor::new(parts()).unwrap();
        let bounds = square(0.0, 0.0, 100.0);
        let bright_left = predictor.place(&halves(200, 100), &bounds);
        assert_near(bright_left[0], 30.0, 20.0);
        assert_near(bright_left[4], 80.0, 80.0);
        // As bright as the threshold is not brighter.
        assert_near(predictor.place(&halves(150, 100), &bounds)[0], 20.0, 30.0);
        // Beyond the photo all is black.
        assert_near(predictor.place(&halves(200, 200), &square(50.0, 0.0, 100.0))[0], 80.0, 20.0);
        assert_near(predictor.place(&halves(200, 200), &square(-300.0, 0.0, 100.0))[0], -280.0, 30.0);
    }

    #[test]
    fn a_boxs_corners_are_whole_pixels() {
        let predictor = ShapePredictor::new(parts()).unwrap();
        let bounds = BoundingBox { left: 0.4, top: -0.5, right: 99.5, bottom: 100.4 };
        assert_near(predictor.place(&halves(0, 0), &bounds)[0], 20.0, 30.0);
    }

    #[test]
    fn pixels_turn_and_grow_with_the_shape() {
        // The first cascade always turns the shape by a quarter about its first landmark and doubles it.
        let first = parts();
        let at = first.initial[0];
        let turned = first.initial.map(|p| point(at.x - 2.0 * (p.y - at.y), at.y + 2.0 * (p.x - at.x)));
        let step: [Point; 5] =
            std::array::from_fn(|i| point(turned[i].x - first.initial[i].x, turned[i].y - first.initial[i].y));
        let parts = ShapeParts {
            anchors: vec![0, 0, 0, 0],
            // Of the second cascade: 0.1 to the right becomes 0.2 downwards, and 0.1 upwards 0.2 to the right.
            deltas: vec![point(0.0, 0.0), point(0.0, 0.0), point(0.1, 0.0), point(0.0, -0.1)],
            splits: vec![[0, 1], [1, 0]],
            thresholds: vec![50.0, 50.0],
            leaves: vec![step, step, [point(1.0, 0.0); 5], [point(0.0, 0.0); 5]],
            ..first
        };
        let predictor = ShapePredictor::new(parts).unwrap();
        let with_spot = |x: usize, y: usize| {
            let rgb = (0..101 * 101).flat_map(|i| [if i == y * 101 + x { 255 } else { 0 }; 3]).collect();
            predictor.place(&DecodedImage::from_rgb(101, 101, rgb).unwrap(), &square(0.0, 0.0, 100.0))
        };
        assert_near(with_spot(40, 20)[0], 120.0, 20.0);
        assert_near(with_spot(20, 40)[0], 20.0, 20.0);
        assert_near(with_spot(30, 20)[1], 20.0, 140.0);
    }

    #[test]
    fn every_tree_of_any_number_is_walked_to_its_leaf() {
        // Brightness falls from the first landmark to the third: the splits [0, 1], [1, 2] and [0, 2] go left.
        let splits = [[0, 1], [1, 0], [1, 2]];
        for n_trees in 1..20 {
            let leaf = |i: usize| [point([0.0, 0.01, 0.02, 0.03][i % 4], 0.0); 5];
            let parts = ShapeParts {
                anchors: vec![0, 1, 2],
                deltas: vec![point(0.0, 0.0); 3],
                n_pixels: 3,
                // Root left, its left child right: the second leaf. Turned round: right, then left: the third.
                splits: (0..n_trees).flat_map(|t| if t % 2 == 0 { splits } else { [[2, 1], [1, 0], [0, 2]] }).collect(),
                thresholds: vec![20.5; 3 * n_trees],
                leaves: (0..4 * n_trees).map(leaf).collect(),
                n_trees,
                n_splits: 3,
                ..parts()
            };
            let mut rgb = halves(200, 150).rgb().to_vec();
            rgb[(50 * 101 + 50) * 3..][..3].fill(100);
            let photo = DecodedImage::from_rgb(101, 101, rgb).unwrap();
            let x = ShapePredictor::new(parts).unwrap().place(&photo, &square(0.0, 0.0, 100.0))[0].x;
            let expected = 20.0 + (n_trees.div_ceil(2) as f32) + 2.0 * (n_trees / 2) as f32;
            assert!((x - expected).abs() < 1e-3, "{n_trees} trees: {x}, expected {expected}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |spoil: fn(&mut ShapeParts)| {
            let mut parts = parts();
            spoil(&mut parts);
            ShapePredictor::new(parts).unwrap_err()
        };
        assert!(refused(|p| p.splits[0] = [0, 2]).contains("pixel 2 of 2"));
        assert!(refused(|p| p.anchors[0] = 5).contains("landmark 5"));
        assert!(refused(|p| p.leaves.truncate(1)).contains("leaves"));
        assert!(refused(|p| p.deltas.truncate(1)).contains("deltas"));
        assert!(refused(|p| p.anchors.push(0)).contains("anchors"));
        assert!(refused(|p| p.anchors.clear()).contains("no cascades"));
        assert!(refused(|p| p.n_pixels = 1 << 17).contains("65536"));
        assert!(refused(|p| p.thresholds[0] = f32::NAN).contains("threshold"));
        assert!(refused(|p| p.initial = [p.initial[0]; 5]).contains("are equal"));
        for n_splits in [0, 2, usize::MAX] {
            let error = ShapePredictor::new(ShapeParts { n_splits, ..parts() }).unwrap_err();
            assert!(error.contains("no predictor"), "{error}");
        }
        assert!(refused(|p| p.n_pixels = 0).contains("no predictor"));
        assert!(refused(|p| p.n_trees = usize::MAX).contains("splits"));
        assert!(refused(|p| *p = ShapeParts::default()).contains("no predictor"));
    }

    proptest! {
        #[test]
        fn any_box_and_any_numbers_end_in_points(
            edges in any::<[f32; 4]>(),
            delta in any::<[f32; 2]>(),
            leaf in any::<[f32; 2]>(),
            threshold in any::<f32>(),
        ) {
            let mut parts = parts();
            parts.deltas[0] = point(delta[0], delta[1]);
            parts.leaves[0][3] = point(leaf[0], leaf[1]);
            parts.thresholds[0] = threshold;
            let predictor = ShapePredictor::new(parts).unwrap();
            let bounds = BoundingBox { left: edges[0], top: edges[1], right: edges[2], bottom: edges[3] };
            let _ = predictor.place(&halves(9, 200), &bounds);
            let _ = predictor.place(&halves(200, 9), &square(0.0, 0.0, 100.0));
        }
    }
}
