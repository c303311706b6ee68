//! Five points by which faces are cut out, placed by regression trees.
//!
//! Kazemi and Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees" (2014), as dlib has it:
//! from an average shape in a box, each tree compares the brightness of two pixels, whose places move with the shape,
//! and corrects it a little.

use super::{BoundingBox, DecodedImage, Point, align::Similarity};

/// The numbers of a predictor of five points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShapeParts {
    /// The average shape in the unit square.
    pub initial: [Point; 5],
    /// One a pair of pixels and cascade: the landmark that each pixel lies near.
    pub anchors: Vec<usize>,
    /// The way from there, in the unit square of the average shape.
    pub deltas: Vec<Point>,
    /// Pixels that a cascade looks at.
    pub n_pixels: usize,
    /// Two pixels a split: which differences are compared.
    pub splits: Vec<[usize; 2]>,
    /// What the difference must be above to go left.
    pub thresholds: Vec<f32>,
    /// What a leaf adds to the shape.
    pub leaves: Vec<[Point; 5]>,
    /// Trees a cascade.
    pub n_trees: usize,
    /// Splits a tree: one less than a power of two.
    pub n_splits: usize,
}

/// A predictor of five points.
#[derive(Clone, Debug)]
pub struct ShapePredictor {
    parts: ShapeParts,
    n_cascades: usize,
}

impl ShapePredictor {
    /// Checks every index, so that placing cannot fail.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn new(parts: ShapeParts) -> Result<Self, String> {
        let n_leaves = parts.n_splits + 1;
        if parts.n_pixels == 0 || parts.n_trees == 0 || !n_leaves.is_power_of_two() {
            return Err(format!(
                "{} pixels, {} trees of {} splits make no predictor",
                parts.n_pixels, parts.n_trees, parts.n_splits
            ));
        }
        let n_cascades = parts.anchors.len() / parts.n_pixels;
        let expected = [
            ("anchors", parts.anchors.len(), parts.n_pixels),
            ("deltas", parts.deltas.len(), parts.n_pixels),
            ("splits", parts.splits.len(), parts.n_trees * parts.n_splits),
            ("thresholds", parts.thresholds.len(), parts.n_trees * parts.n_splits),
            ("leaves", parts.leaves.len(), parts.n_trees * n_leaves),
        ];
        if let Some((name, n, of_cascade)) = expected.into_iter().find(|(_, n, each)| *n != n_cascades * each) {
            return Err(format!("{n} {name} where {n_cascades} cascades have {of_cascade} each"));
        }
        if parts.anchors.iter().any(|anchor| *anchor >= 5) {
            return Err("a pixel lies near a landmark that there is not".to_owned());
        }
        if parts.splits.iter().flatten().any(|pixel| *pixel >= parts.n_pixels) {
            return Err("a split compares a pixel that there is not".to_owned());
        }
        Ok(Self { parts, n_cascades })
    }

    /// The five points of the face in this box, in pixels of `photo`.
    #[must_use]
    pub fn place(&self, photo: &DecodedImage, bounds: &BoundingBox) -> [Point; 5] {
        let parts = &self.parts;
        // dlib's boxes are of whole pixels, both edges within.
        let to_photo = |p: Point| Point {
            x: bounds.left.round() + p.x * (bounds.right.round() - bounds.left.round()),
            y: bounds.top.round() + p.y * (bounds.bottom.round() - bounds.top.round()),
        };
        let mut shape = parts.initial;
        let mut brightness = vec![0.0_f32; parts.n_pixels];
        for cascade in 0..self.n_cascades {
            let turn = Similarity::fit(&parts.initial, &shape);
            let pixels = cascade * parts.n_pixels..(cascade + 1) * parts.n_pixels;
            let places = parts.anchors[pixels.clone()].iter().zip(&parts.deltas[pixels]);
            for (value, (&anchor, delta)) in brightness.iter_mut().zip(places) {
                let (dx, dy) = turn.apply_direction(delta.x.into(), delta.y.into());
                let place = Point { x: shape[anchor].x + dx as f32, y: shape[anchor].y + dy as f32 };
                *value = brightness_at(photo, to_photo(place));
            }
            for tree in cascade * parts.n_trees..(cascade + 1) * parts.n_trees {
                let leaf = &parts.leaves[tree * (parts.n_splits + 1) + self.leaf(tree, &brightness)];
                for (point, change) in shape.iter_mut().zip(leaf) {
                    point.x += change.x;
                    point.y += change.y;
                }
            }
        }
        shape.map(to_photo)
    }

    /// The leaf of a tree, from its root down: the left child of `i` is `2i + 1`.
    fn leaf(&self, tree: usize, brightness: &[f32]) -> usize {
        let first = tree * self.parts.n_splits;
        let mut at = 0;
        while at < self.parts.n_splits {
            let [a, b] = self.parts.splits[first + at];
            let is_left = brightness[a] - brightness[b] > self.parts.thresholds[first + at];
            at = 2 * at + if is_left { 1 } else { 2 };
        }
        at - self.parts.n_splits
    }
}

/// The mean of the three colours at the nearest pixel; 0 beyond the photo.
fn brightness_at(photo: &DecodedImage, at: Point) -> f32 {
    let (x, y) = ((at.x + 0.5).floor(), (at.y + 0.5).floor());
    let inside = x >= 0.0 && y >= 0.0 && x < photo.width_px() as f32 && y < photo.height_px() as f32;
    if !inside {
        return 0.0;
    }
    let i = (y as usize * photo.width_px() as usize + x as usize) * 3;
    let sum: u32 = photo.rgb()[i..i + 3].iter().map(|&v| u32::from(v)).sum();
    // dlib divides whole numbers.
    (sum / 3) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> ShapeParts {
        let point = |x, y| Point { x, y };
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

    #[test]
    fn a_tree_moves_the_shape_by_what_it_sees() {
        let predictor = ShapePredictor::new(parts()).unwrap();
        let photo = |left: u8, right: u8| {
            let rgb = (0..100 * 100).flat_map(|i| [if i % 100 < 50 { left } else { right }; 3]).collect();
            DecodedImage::from_rgb(100, 100, rgb).unwrap()
        };
        let bounds = BoundingBox { left: 0.0, top: 0.0, right: 100.0, bottom: 100.0 };
        let bright_left = predictor.place(&photo(200, 100), &bounds);
        assert!((bright_left[0].x - 30.0).abs() < 1e-4 && (bright_left[0].y - 20.0).abs() < 1e-4);
        let even = predictor.place(&photo(100, 100), &bounds);
        assert!((even[0].x - 20.0).abs() < 1e-4 && (even[0].y - 30.0).abs() < 1e-4);
        // Beyond the photo all is dark.
        let outside = BoundingBox { left: 300.0, top: 0.0, right: 400.0, bottom: 100.0 };
        assert!((predictor.place(&photo(9, 9), &outside)[0].x - 320.0).abs() < 1e-3);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |spoil: fn(&mut ShapeParts)| {
            let mut parts = parts();
            spoil(&mut parts);
            ShapePredictor::new(parts).unwrap_err()
        };
        assert!(refused(|p| p.splits[0] = [0, 2]).contains("pixel"));
        assert!(refused(|p| p.anchors[0] = 5).contains("landmark"));
        assert!(refused(|p| drop(p.leaves.pop())).contains("leaves"));
        assert!(refused(|p| drop(p.deltas.pop())).contains("deltas"));
        assert!(refused(|p| p.n_splits = 2).contains("no predictor"));
        assert!(refused(|p| p.n_pixels = 0).contains("no predictor"));
    }
}
