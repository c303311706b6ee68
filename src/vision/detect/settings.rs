//! The settings of a detector, with the points by which faces are aligned.

use super::pyramid::CascadeSettings;
use crate::vision::Point;

/// The settings of a detector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DetectorSettings {
    /// The settings of the cascade of networks.
    pub cascade: CascadeSettings,
    /// Where the cascade's landmarks of an average face lie in a unit square; `None`: at the chip's template.
    pub landmarks: Option<[Point; 5]>,
    /// The box that the predictor of alignment points expects; `None`: faces are aligned by the landmarks themselves.
    pub alignment_box: Option<AlignmentBox>,
}

/// The box that a shape predictor expects around a face, relative to the cascade's landmarks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlignmentBox {
    /// Where the landmarks of an average face lie in a unit square.
    pub landmarks: [Point; 5],
    /// The centre of the box in that square.
    pub centre: Point,
    /// The length of the box's sides, in sides of that square.
    pub side: f32,
}

/// Makes five points of ten numbers: x, y, x, y, and so on. Returns `None` for another count.
#[must_use]
pub fn points(numbers: &[f32]) -> Option<[Point; 5]> {
    let numbers = <[f32; 10]>::try_from(numbers).ok()?;
    Some(std::array::from_fn(|i| Point { x: numbers[2 * i], y: numbers[2 * i + 1] }))
}
