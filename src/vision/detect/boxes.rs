//! Bounding boxes, detected faces, and non-maximum suppression.

use crate::vision::geometry::{Point, Similarity};

/// A box in a photo, in pixels; it may reach beyond the photo's edges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BoundingBox {
    /// The left edge.
    pub left: f32,
    /// The upper edge.
    pub top: f32,
    /// The right edge.
    pub right: f32,
    /// The lower edge.
    pub bottom: f32,
}

/// A face that the detector found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectedFace {
    /// The box around the face, from brow to chin.
    pub bounds: BoundingBox,
    /// The last network's score for a face, 0 to 1.
    pub score: f32,
    /// The eyes, the tip of the nose and the corners of the mouth; of each pair, the left one in the image comes first.
    pub landmarks: [Point; 5],
    /// The alignment points, by which the face is cut out: the landmarks, or the more accurate points of a predictor.
    pub alignment: [Point; 5],
    /// The last network's score for the same crop rotated by 180 degrees, 0 to 1; computed only for faces with a score
    /// below [`UPRIGHT_SCORE`](super::UPRIGHT_SCORE).
    pub rotated_score: Option<f32>,
}

impl BoundingBox {
    /// Returns right minus left.
    #[must_use]
    pub fn width(&self) -> f32 {
        self.right - self.left
    }

    /// Returns bottom minus top.
    #[must_use]
    pub fn height(&self) -> f32 {
        self.bottom - self.top
    }

    /// Returns the area; 0 if an edge lies beyond its opposite.
    #[must_use]
    pub fn area(&self) -> f32 {
        self.width().max(0.0) * self.height().max(0.0)
    }

    /// Returns the intersection over union, 0 to 1.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let shared = self.intersection(other, 0.0);
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }

    /// Returns the area of the intersection. `extra` is added to the length of its sides: 1 if edges count as pixels.
    fn intersection(&self, other: &Self, extra: f32) -> f32 {
        let width = self.right.min(other.right) - self.left.max(other.left) + extra;
        let height = self.bottom.min(other.bottom) - self.top.max(other.top) + extra;
        width.max(0.0) * height.max(0.0)
    }

    /// Returns the intersection as a fraction of the smaller box; edges count as pixels.
    fn share_of_smaller(&self, other: &Self) -> f32 {
        let area = |b: &Self| (b.width() + 1.0) * (b.height() + 1.0);
        let smaller = area(self).min(area(other));
        if smaller > 0.0 { self.intersection(other, 1.0) / smaller } else { 1.0 }
    }

    /// Returns the box corrected by a network's offsets, which are fractions of its sides. `extra` is added to the
    /// length of the sides.
    pub(super) fn regressed(&self, offsets: [f32; 4], extra: f32) -> Self {
        let (width, height) = (self.width() + extra, self.height() + extra);
        Self {
            left: self.left + offsets[0] * width,
            top: self.top + offsets[1] * height,
            right: self.right + offsets[2] * width,
            bottom: self.bottom + offsets[3] * height,
        }
    }

    /// Returns the square with the same centre and the longer side.
    pub(super) fn squared(&self) -> Self {
        let side = self.width().max(self.height());
        let left = self.left + (self.width() - side) / 2.0;
        let top = self.top + (self.height() - side) / 2.0;
        Self { left, top, right: left + side, bottom: top + side }
    }

    /// Returns the box with its coordinates multiplied by `x` and `y`.
    #[must_use]
    pub fn scaled(&self, x: f32, y: f32) -> Self {
        Self { left: self.left * x, top: self.top * y, right: self.right * x, bottom: self.bottom * y }
    }
}

impl DetectedFace {
    /// Returns the face in the photo scaled by `x` and `y`.
    #[must_use]
    pub fn scaled(&self, x: f32, y: f32) -> Self {
        let scaled = |points: [Point; 5]| points.map(|p| Point { x: p.x * x, y: p.y * y });
        let (landmarks, alignment) = (scaled(self.landmarks), scaled(self.alignment));
        Self { bounds: self.bounds.scaled(x, y), landmarks, alignment, ..*self }
    }

    /// Returns the face in a larger photo that contains this one at the offset `x`, `y`.
    #[must_use]
    pub fn shifted(&self, x: f32, y: f32) -> Self {
        let shifted = |points: [Point; 5]| points.map(|p| Point { x: p.x + x, y: p.y + y });
        let BoundingBox { left, top, right, bottom } = self.bounds;
        Self {
            bounds: BoundingBox { left: left + x, top: top + y, right: right + x, bottom: bottom + y },
            landmarks: shifted(self.landmarks),
            alignment: shifted(self.alignment),
            ..*self
        }
    }

    /// Returns the face in the photo rotated by 180 degrees; `width_px` and `height_px` are the photo's sides. The
    /// points keep their order, so the left one of a pair becomes the right one in the image.
    #[must_use]
    pub fn rotated_180(&self, width_px: u32, height_px: u32) -> Self {
        let (width, height) = (width_px as f32 - 1.0, height_px as f32 - 1.0);
        let rotated = |points: [Point; 5]| points.map(|p| Point { x: width - p.x, y: height - p.y });
        let BoundingBox { left, top, right, bottom } = self.bounds;
        Self {
            bounds: BoundingBox {
                left: width - right,
                top: height - bottom,
                right: width - left,
                bottom: height - top,
            },
            landmarks: rotated(self.landmarks),
            alignment: rotated(self.alignment),
            ..*self
        }
    }

    /// Maps a square from an average face to this face. The average face has the alignment points `template`, and the
    /// square has this centre and side there. The result is upright even if the face is tilted.
    #[must_use]
    pub fn square_at(&self, template: &[Point; 5], centre: Point, side: f32) -> BoundingBox {
        let fit = Similarity::fit(template, &self.alignment);
        let (x, y) = fit.apply(centre.x.into(), centre.y.into());
        let half = f64::from(side) * fit.scale() / 2.0;
        let edges = [x - half, y - half, x + half, y + half].map(|edge| edge as f32);
        BoundingBox { left: edges[0], top: edges[1], right: edges[2], bottom: edges[3] }
    }
}

/// The measure of the overlap of two boxes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Overlap {
    /// Intersection over union.
    Union,
    /// Intersection over the smaller box, so a box within another is a duplicate.
    Smaller,
}

/// Non-maximum suppression: returns the indices of the boxes that are kept, best first. A box is dropped if it overlaps
/// a better one by more than `most`, or if one of its numbers is not finite.
pub(super) fn suppress(boxes: &[(BoundingBox, f32)], most: f32, overlap: Overlap) -> Vec<usize> {
    let is_number = |(b, score): &(BoundingBox, f32)| {
        [b.left, b.top, b.right, b.bottom, *score].iter().all(|value| value.is_finite())
    };
    let mut order: Vec<usize> = (0..boxes.len()).filter(|&i| is_number(&boxes[i])).collect();
    // Boxes that extend beyond the photo on all sides have the same crop and the same score. Of equal boxes, the
    // published code keeps the first, but the last if it compares with the smaller box.
    if matches!(overlap, Overlap::Smaller) {
        order.reverse();
    }
    order.sort_by(|&a, &b| boxes[b].1.total_cmp(&boxes[a].1));
    let mut kept: Vec<usize> = Vec::new();
    for candidate in order {
        let hidden = kept.iter().any(|&better| {
            let (a, b) = (&boxes[better].0, &boxes[candidate].0);
            let shared = match overlap {
                Overlap::Union => a.iou(b),
                Overlap::Smaller => a.share_of_smaller(b),
            };
            shared > most
        });
        if !hidden {
            kept.push(candidate);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn square(left: f32, top: f32, side: f32) -> BoundingBox {
        BoundingBox { left, top, right: left + side, bottom: top + side }
    }

    #[test]
    fn overlap_is_measured_as_named() {
        let (large, small) = (square(0.0, 0.0, 10.0), square(2.0, 2.0, 5.0));
        assert!((large.iou(&small) - 0.25).abs() < 1e-6);
        assert!((large.share_of_smaller(&small) - 1.0).abs() < 1e-6);
        assert_eq!(large.iou(&square(20.0, 0.0, 5.0)), 0.0);
        assert_eq!(BoundingBox::default().iou(&BoundingBox::default()), 0.0);
    }

    #[test]
    fn the_better_of_two_stays() {
        let boxes = [(square(0.0, 0.0, 10.0), 0.8), (square(1.0, 0.0, 10.0), 0.9), (square(50.0, 0.0, 10.0), 0.1)];
        assert_eq!(suppress(&boxes, 0.5, Overlap::Union), [1, 2]);
        let nested = [(square(0.0, 0.0, 10.0), 0.8), (square(2.0, 2.0, 5.0), 0.9)];
        assert_eq!(suppress(&nested, 0.7, Overlap::Union), [1, 0]);
        assert_eq!(suppress(&nested, 0.7, Overlap::Smaller), [1]);
        let equal = [(square(0.0, 0.0, 10.0), 0.9), (square(0.0, 0.0, 11.0), 0.9)];
        assert_eq!(suppress(&equal, 0.5, Overlap::Union), [0]);
        assert_eq!(suppress(&equal, 0.5, Overlap::Smaller), [1]);
        assert!(suppress(&[(square(f32::NAN, 0.0, 1.0), 1.0)], 0.5, Overlap::Union).is_empty());
    }

    #[test]
    fn a_face_in_a_rotated_part_is_where_it_was() {
        let point = |x, y| Point { x, y };
        let landmarks = [point(12.0, 20.0), point(18.0, 20.0), point(15.0, 24.0), point(13.0, 28.0), point(17.0, 28.0)];
        let face = DetectedFace {
            bounds: square(10.0, 15.0, 12.0),
            score: 0.9,
            landmarks,
            alignment: landmarks,
            rotated_score: None,
        };
        let rotated = face.rotated_180(100, 50);
        assert_eq!(rotated.bounds, BoundingBox { left: 77.0, top: 22.0, right: 89.0, bottom: 34.0 });
        assert_eq!(rotated.landmarks[0], point(87.0, 29.0));
        assert_eq!(rotated.rotated_180(100, 50), face);
        assert_eq!(face.shifted(5.0, -3.0).bounds, square(15.0, 12.0, 12.0));
        assert_eq!(face.shifted(5.0, -3.0).shifted(-5.0, 3.0), face);
    }

    #[test]
    fn a_square_keeps_the_centre() {
        let tall = BoundingBox { left: 10.0, top: 0.0, right: 20.0, bottom: 30.0 };
        assert_eq!(tall.squared(), BoundingBox { left: 0.0, top: 0.0, right: 30.0, bottom: 30.0 });
        assert_eq!(square(0.0, 0.0, 10.0).regressed([0.1, 0.0, -0.1, 0.5], 0.0).right, 9.0);
    }

    proptest! {
        #[test]
        fn what_stays_does_not_overlap(rows in prop::collection::vec((0.0..90.0f32, 0.0..90.0f32, 1.0..40.0f32, 0.0..1.0f32), 0..40)) {
            let boxes: Vec<_> = rows.iter().map(|&(x, y, side, score)| (square(x, y, side), score)).collect();
            let kept = suppress(&boxes, 0.5, Overlap::Union);
            for (i, &a) in kept.iter().enumerate() {
                prop_assert!(kept[i + 1..].iter().all(|&b| boxes[a].0.iou(&boxes[b].0) <= 0.5 && boxes[a].1 >= boxes[b].1));
            }
            // And what goes overlaps something better.
            for gone in (0..boxes.len()).filter(|i| !kept.contains(i)) {
                prop_assert!(kept.iter().any(|&k| boxes[k].0.iou(&boxes[gone].0) > 0.5));
            }
        }
    }
}
