//! Boxes, and which of those that overlap is kept.

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

/// A face that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectedFace {
    /// Around it, from brow to chin.
    pub bounds: BoundingBox,
    /// How sure the last network is that it is one, 0 to 1.
    pub score: f32,
    /// Eye, eye, tip of the nose, corner and corner of the mouth; of each pair the left one in the picture first.
    pub landmarks: [Point; 5],
    /// Five points that the face is cut out by: the landmarks, or those of a predictor that places them better.
    pub alignment: [Point; 5],
    /// How sure the last network is that it is one where the picture is rotated by 180 degrees, 0 to 1. It is asked only
    /// about faces below [`SURE`](super::SURE).
    pub rotated_score: Option<f32>,
}

impl BoundingBox {
    /// Right minus left.
    #[must_use]
    pub fn width(&self) -> f32 {
        self.right - self.left
    }

    /// Bottom minus top.
    #[must_use]
    pub fn height(&self) -> f32 {
        self.bottom - self.top
    }

    /// Its area; 0 for one that is turned inside out.
    #[must_use]
    pub fn area(&self) -> f32 {
        self.width().max(0.0) * self.height().max(0.0)
    }

    /// Intersection over union, 0 to 1.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let shared = self.intersection(other, 0.0);
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }

    /// The area in both; `extra` is added to each side's length (1 where edges count as pixels within).
    fn intersection(&self, other: &Self, extra: f32) -> f32 {
        let width = self.right.min(other.right) - self.left.max(other.left) + extra;
        let height = self.bottom.min(other.bottom) - self.top.max(other.top) + extra;
        width.max(0.0) * height.max(0.0)
    }

    /// The share of the smaller box that is in both, edges counted as pixels.
    fn share_of_smaller(&self, other: &Self) -> f32 {
        let area = |b: &Self| (b.width() + 1.0) * (b.height() + 1.0);
        let smaller = area(self).min(area(other));
        if smaller > 0.0 { self.intersection(other, 1.0) / smaller } else { 1.0 }
    }

    /// Moved and stretched by the offsets that a network gives, in shares of its sides, whose length has `extra` more.
    pub(super) fn regressed(&self, offsets: [f32; 4], extra: f32) -> Self {
        let (width, height) = (self.width() + extra, self.height() + extra);
        Self {
            left: self.left + offsets[0] * width,
            top: self.top + offsets[1] * height,
            right: self.right + offsets[2] * width,
            bottom: self.bottom + offsets[3] * height,
        }
    }

    /// The square with the same centre and the longer side.
    pub(super) fn squared(&self) -> Self {
        let side = self.width().max(self.height());
        let left = self.left + (self.width() - side) / 2.0;
        let top = self.top + (self.height() - side) / 2.0;
        Self { left, top, right: left + side, bottom: top + side }
    }

    /// Every coordinate times these.
    #[must_use]
    pub fn scaled(&self, x: f32, y: f32) -> Self {
        Self { left: self.left * x, top: self.top * y, right: self.right * x, bottom: self.bottom * y }
    }
}

impl DetectedFace {
    /// In a photo whose sides are these times as long.
    #[must_use]
    pub fn scaled(&self, x: f32, y: f32) -> Self {
        let scaled = |points: [Point; 5]| points.map(|p| Point { x: p.x * x, y: p.y * y });
        let (landmarks, alignment) = (scaled(self.landmarks), scaled(self.alignment));
        Self { bounds: self.bounds.scaled(x, y), landmarks, alignment, ..*self }
    }

    /// In a photo of which this one is a part, from these pixels on.
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

    /// In the same photo rotated by 180 degrees, whose sides are these. The points keep their order, so that of each pair
    /// the left one in one picture is the right one in the other.
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

    /// The square that lies on this face where one with this centre and side lies on an average face, whose alignment
    /// points are `template`. It is upright, however the face is tilted.
    #[must_use]
    pub fn square_at(&self, template: &[Point; 5], centre: Point, side: f32) -> BoundingBox {
        let fit = Similarity::fit(template, &self.alignment);
        let (x, y) = fit.apply(centre.x.into(), centre.y.into());
        let half = f64::from(side) * fit.scale() / 2.0;
        let edges = [x - half, y - half, x + half, y + half].map(|edge| edge as f32);
        BoundingBox { left: edges[0], top: edges[1], right: edges[2], bottom: edges[3] }
    }
}

/// What counts as overlap.
#[derive(Clone, Copy, Debug)]
pub(super) enum Overlap {
    /// Intersection over union.
    Union,
    /// Intersection over the smaller box, so that a box within a box is one too many.
    Smaller,
}

/// Non-maximum suppression: the indices of the boxes that stay, best first. A box goes when it overlaps a better one by
/// more than `most`. Boxes that are no numbers go, too.
pub(super) fn suppress(boxes: &[(BoundingBox, f32)], most: f32, overlap: Overlap) -> Vec<usize> {
    let is_number = |(b, score): &(BoundingBox, f32)| {
        [b.left, b.top, b.right, b.bottom, *score].iter().all(|value| value.is_finite())
    };
    let mut order: Vec<usize> = (0..boxes.len()).filter(|&i| is_number(&boxes[i])).collect();
    // Boxes that reach beyond the photo on all sides show the same crop and score the same. Of equal ones the published
    // code takes the first, but the last where it looks at the smaller box.
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
