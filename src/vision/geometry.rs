//! Points in an image, and similarity transforms: rotation, scaling and translation.

/// A point in an image, in pixels from its upper left corner, or in a unit square.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// The distance to the right.
    pub x: f32,
    /// The distance downwards.
    pub y: f32,
}

/// A rotation, a scaling and a translation: `x' = a x - b y + shift.x`, `y' = b x + a y + shift.y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Similarity {
    a: f64,
    b: f64,
    shift: (f64, f64),
}

impl Similarity {
    /// Returns the transform that maps `from` nearest to `to`, by least squares (Umeyama 1991, in the plane).
    pub(super) fn fit(from: &[Point; 5], to: &[Point; 5]) -> Self {
        let mean = |points: &[Point; 5]| {
            let sum = points.iter().fold((0.0, 0.0), |(x, y), p| (x + f64::from(p.x), y + f64::from(p.y)));
            (sum.0 / 5.0, sum.1 / 5.0)
        };
        let (from_mean, to_mean) = (mean(from), mean(to));
        let (mut a, mut b, mut spread) = (0.0, 0.0, 0.0);
        for (from, to) in from.iter().zip(to) {
            let (x, y) = (f64::from(from.x) - from_mean.0, f64::from(from.y) - from_mean.1);
            let (u, v) = (f64::from(to.x) - to_mean.0, f64::from(to.y) - to_mean.1);
            a += x * u + y * v;
            b += x * v - y * u;
            spread += x * x + y * y;
        }
        // Five equal points have no direction and no size.
        let spread = if spread > 0.0 { spread } else { 1.0 };
        let (a, b) = (a / spread, b / spread);
        let shift = (to_mean.0 - a * from_mean.0 + b * from_mean.1, to_mean.1 - b * from_mean.0 - a * from_mean.1);
        Self { a, b, shift }
    }

    /// Transforms a point.
    pub(super) fn apply(&self, x: f64, y: f64) -> (f64, f64) {
        (self.a * x - self.b * y + self.shift.0, self.b * x + self.a * y + self.shift.1)
    }

    /// Transforms an offset between two points, without the translation.
    pub(super) fn apply_direction(&self, x: f64, y: f64) -> (f64, f64) {
        (self.a * x - self.b * y, self.b * x + self.a * y)
    }

    /// Returns the factor by which lengths grow.
    pub(super) fn scale(&self) -> f64 {
        self.a.hypot(self.b)
    }
}
