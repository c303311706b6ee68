//! Places in a picture, and how they move when it is turned, stretched and shifted.

/// A place in a photo, in pixels from its upper left corner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f32,
    /// Downwards.
    pub y: f32,
}

/// A turn, a stretch and a shift: `x' = a x - b y + shift.x`, `y' = b x + a y + shift.y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Similarity {
    a: f64,
    b: f64,
    shift: (f64, f64),
}

impl Similarity {
    /// The one that brings `from` nearest to `to`, by least squares (Umeyama 1991, in the plane).
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
        // Five points on one spot have no direction and no size.
        let spread = if spread > 0.0 { spread } else { 1.0 };
        let (a, b) = (a / spread, b / spread);
        let shift = (to_mean.0 - a * from_mean.0 + b * from_mean.1, to_mean.1 - b * from_mean.0 - a * from_mean.1);
        Self { a, b, shift }
    }

    /// Where a point goes.
    pub(super) fn apply(&self, x: f64, y: f64) -> (f64, f64) {
        (self.a * x - self.b * y + self.shift.0, self.b * x + self.a * y + self.shift.1)
    }

    /// Where a way goes, wherever it begins.
    pub(super) fn apply_direction(&self, x: f64, y: f64) -> (f64, f64) {
        (self.a * x - self.b * y, self.b * x + self.a * y)
    }

    /// How many times as long things become.
    pub(super) fn scale(&self) -> f64 {
        self.a.hypot(self.b)
    }
}
