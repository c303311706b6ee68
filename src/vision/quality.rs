//! Measures how usable a face is for reading.

use super::{ChipSettings, DecodedImage, DetectedFace, Pixels, Point, cut_chip};

/// Measurements of a face's image that do not depend on who or what it shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaceQuality {
    /// The shorter side of the face's box, in pixels of the photo as sent. If the photo was decoded at a lower
    /// resolution than the chip needs, in decoded pixels.
    pub face_px: f64,
    /// The detector's score for a face, 0 to 1. Hands, masks and hair before a face lower it.
    pub detection: f64,
    /// Fine against coarse detail: the variance of the Laplacian over that of the brightness. Blur lowers it.
    pub sharpness: f64,
    /// Mean brightness, 0 (black) to 1 (white).
    pub brightness: f64,
    /// Standard deviation of the brightness, 0 to 0.5.
    pub contrast: f64,
    /// How far the head is turned sideways, in degrees; positive: to the image's right. From five points only, so
    /// accurate to some ten degrees.
    pub yaw_degrees: f64,
    /// How far it looks up (positive) or down, in degrees; equally rough.
    pub pitch_degrees: f64,
    /// How far it is tilted, in degrees; positive: clockwise.
    pub roll_degrees: f64,
    /// Similarity of the face's two halves, -1 to 1: the correlation of the coarse image with its mirror image.
    /// Covering or lighting one side alone lowers it.
    pub symmetry: f64,
    /// The share of the face and its surroundings that lies within the photo, 0 to 1.
    pub visible: f64,
    /// Distance of the alignment points from those of an average face, in sides of the face.
    pub misfit: f64,
}

/// The side of the chip that is measured, in pixels.
const SIDE_PX: u32 = 96;

/// The side to which it is reduced to compare its halves, in pixels.
const COARSE_PX: usize = 16;

/// How far the tip of the nose is in front of the eyes, in distances between them. An anthropometric mean: some 35 of
/// 63 mm.
const NOSE_DEPTH: f64 = 0.55;

impl FaceQuality {
    /// Measures a face in `photo`, each of whose pixels counts as `scale` pixels along a line. `landmarks` and
    /// `template` are an average face's landmarks and alignment points.
    #[must_use]
    pub fn of(
        photo: &DecodedImage,
        scale: f64,
        face: &DetectedFace,
        landmarks: &[Point; 5],
        template: &[Point; 5],
    ) -> Self {
        let settings = ChipSettings { side_px: SIDE_PX, padding: 0.1, template: *template };
        let chip = cut_chip(photo, &face.alignment, &settings);
        let luma = luma(&chip.pixels);
        let n = SIDE_PX as usize;
        let (mean, variance) = moments(&luma);
        let (_, fine) = moments(&laplacian(&luma, n));
        let pose = Pose::of(&face.landmarks, landmarks);
        Self {
            face_px: f64::from(face.bounds.width().min(face.bounds.height())) * scale,
            detection: face.score.into(),
            // The minimum avoids dividing by zero in an image of one colour.
            sharpness: fine / variance.max(1e-6),
            brightness: mean,
            contrast: variance.sqrt(),
            yaw_degrees: pose.yaw,
            pitch_degrees: pose.pitch,
            roll_degrees: pose.roll,
            symmetry: symmetry(&luma, n),
            visible: chip.visible.into(),
            misfit: chip.misfit.into(),
        }
    }

    /// Returns every measurement with its name.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, f64); 11] {
        [
            ("face_px", self.face_px),
            ("detection", self.detection),
            ("sharpness", self.sharpness),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("yaw_degrees", self.yaw_degrees),
            ("pitch_degrees", self.pitch_degrees),
            ("roll_degrees", self.roll_degrees),
            ("symmetry", self.symmetry),
            ("visible", self.visible),
            ("misfit", self.misfit),
        ]
    }
}

/// Returns the brightness of each pixel, 0 to 1 (ITU-R BT.601).
fn luma(pixels: &Pixels) -> Vec<f64> {
    let luma = |p: &[u8]| (0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])) / 255.0;
    pixels.rgb.chunks_exact(3).map(luma).collect()
}

/// Returns mean and variance; zeros if there are no values.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

/// Returns the four-neighbour Laplacian of the inner pixels of an `n` by `n` image (Pech-Pacheco et al. 2000).
fn laplacian(luma: &[f64], n: usize) -> Vec<f64> {
    let inner = 1..n - 1;
    let at = |x: usize, y: usize| luma[y * n + x];
    inner
        .clone()
        .flat_map(|y| inner.clone().map(move |x| (x, y)))
        .map(|(x, y)| at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1) - 4.0 * at(x, y))
        .collect()
}

/// Returns the correlation of the reduced image with its mirror image; 1 if it has one colour.
fn symmetry(luma: &[f64], n: usize) -> f64 {
    let block = n / COARSE_PX;
    let mean_of = |column: usize, row: usize| {
        let rows = row * block..(row + 1) * block;
        let sum: f64 = rows.map(|y| luma[y * n + column * block..][..block].iter().sum::<f64>()).sum();
        sum / (block * block) as f64
    };
    let coarse: Vec<f64> = (0..COARSE_PX)
        .flat_map(|row| (0..COARSE_PX).map(move |column| (column, row)))
        .map(|(c, r)| mean_of(c, r))
        .collect();
    let (mean, variance) = moments(&coarse);
    let mirrored = |i: usize| coarse[i / COARSE_PX * COARSE_PX + COARSE_PX - 1 - i % COARSE_PX];
    let shared = (0..coarse.len()).map(|i| (coarse[i] - mean) * (mirrored(i) - mean)).sum::<f64>();
    if variance > 1e-9 { shared / coarse.len() as f64 / variance } else { 1.0 }
}

/// Angles in degrees.
struct Pose {
    yaw: f64,
    pitch: f64,
    roll: f64,
}

impl Pose {
    /// Computes the angles from the nose's position between eyes and mouth, without perspective.
    fn of(landmarks: &[Point; 5], template: &[Point; 5]) -> Self {
        let (dx, dy) = (landmarks[1].x - landmarks[0].x, landmarks[1].y - landmarks[0].y);
        let roll = f64::from(dy).atan2(f64::from(dx));
        let (nose, down, eyes) = nose_between(landmarks);
        let (expected, expected_down, expected_eyes) = nose_between(template);
        let eyes = eyes.max(1e-6);
        let yaw = ((nose.0 / eyes - expected.0 / expected_eyes) / NOSE_DEPTH).atan();
        let share = |nose_down: f64, down: f64| nose_down / down.max(1e-6);
        let lower = share(nose.1, down) - share(expected.1, expected_down);
        let pitch = -(lower * down / eyes / NOSE_DEPTH).atan();
        Self { yaw: yaw.to_degrees(), pitch: pitch.to_degrees(), roll: roll.to_degrees() }
    }
}

/// With the eyes level, returns the nose's distance to the right of the face's middle line and below the eyes, the
/// mouth's distance below the eyes, and the distance between the eyes.
fn nose_between(landmarks: &[Point; 5]) -> ((f64, f64), f64, f64) {
    let middle = |a: Point, b: Point| (f64::from(a.x + b.x) / 2.0, f64::from(a.y + b.y) / 2.0);
    let [left_eye, right_eye, nose, left_mouth, right_mouth] = *landmarks;
    let (eyes, mouth) = (middle(left_eye, right_eye), middle(left_mouth, right_mouth));
    let (dx, dy) = (f64::from(right_eye.x - left_eye.x), f64::from(right_eye.y - left_eye.y));
    let apart = dx.hypot(dy);
    let (cos, sin) = if apart > 0.0 { (dx / apart, dy / apart) } else { (1.0, 0.0) };
    let level = |(x, y): (f64, f64)| (cos * (x - eyes.0) + sin * (y - eyes.1), cos * (y - eyes.1) - sin * (x - eyes.0));
    let (nose, mouth) = (level((nose.x.into(), nose.y.into())), level(mouth));
    // The middle line runs from the midpoint of the eyes to the middle of the mouth.
    let aside = if mouth.1.abs() > 1e-6 { mouth.0 * nose.1 / mouth.1 } else { 0.0 };
    ((nose.0 - aside, nose.1), mouth.1, apart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::BoundingBox;

    const TEMPLATE: [Point; 5] = [
        Point { x: 0.25, y: 0.25 },
        Point { x: 0.75, y: 0.25 },
        Point { x: 0.5, y: 0.5 },
        Point { x: 0.3, y: 0.75 },
        Point { x: 0.7, y: 0.75 },
    ];

    fn face(landmarks: [Point; 5]) -> DetectedFace {
        let bounds = BoundingBox { left: 40.0, top: 30.0, right: 160.0, bottom: 180.0 };
        let landmarks = landmarks.map(|p| Point { x: 50.0 + 100.0 * p.x, y: 50.0 + 100.0 * p.y });
        DetectedFace { bounds, score: 0.99, landmarks, alignment: landmarks, rotated_score: None }
    }

    fn photo(colour: impl Fn(u32, u32) -> u8) -> DecodedImage {
        let rgb = (0..200 * 200).flat_map(|i| [colour(i % 200, i / 200); 3]).collect();
        DecodedImage::from_rgb(200, 200, rgb).unwrap()
    }

    fn judged(colour: impl Fn(u32, u32) -> u8) -> FaceQuality {
        FaceQuality::of(&photo(colour), 2.0, &face(TEMPLATE), &TEMPLATE, &TEMPLATE)
    }

    #[test]
    fn size_is_that_of_the_photo_as_sent() {
        let quality = judged(|_, _| 128);
        assert_eq!(quality.face_px, 240.0);
        assert!((quality.brightness - 0.5).abs() < 0.01 && quality.contrast < 1e-6);
        assert!(quality.yaw_degrees.abs() < 1e-3 && quality.pitch_degrees.abs() < 1e-3, "{quality:?}");
        assert!(quality.misfit < 1e-4 && quality.visible == 1.0, "{quality:?}");
    }

    #[test]
    fn blur_lowers_sharpness() {
        let stripes = |width: u32| move |x: u32, _| if (x / width).is_multiple_of(2) { 60 } else { 190 };
        let (fine, coarse) = (judged(stripes(2)).sharpness, judged(stripes(20)).sharpness);
        let smooth = judged(|x, _| 100 + (40.0 * (f64::from(x) / 20.0).sin()) as u8).sharpness;
        assert!(fine > coarse && coarse > 10.0 * smooth, "{fine} {coarse} {smooth}");
    }

    #[test]
    fn a_covered_half_lowers_symmetry() {
        let even = judged(|x, y| if x.abs_diff(100) < 30 && y > 80 { 60 } else { 180 }).symmetry;
        let half = judged(|x, _| if x < 100 { 10 } else { 200 }).symmetry;
        assert!(even > 0.9 && half < -0.9, "{even} {half}");
    }

    #[test]
    fn the_nose_gives_the_pose() {
        let moved = |x: f32, y: f32| {
            let mut landmarks = TEMPLATE;
            landmarks[2] = Point { x: landmarks[2].x + x, y: landmarks[2].y + y };
            FaceQuality::of(&photo(|_, _| 99), 1.0, &face(landmarks), &TEMPLATE, &TEMPLATE)
        };
        let (right, left, up) = (moved(0.15, 0.0), moved(-0.15, 0.0), moved(0.0, -0.1));
        assert!((20.0..40.0).contains(&right.yaw_degrees), "{right:?}");
        assert!((right.yaw_degrees + left.yaw_degrees).abs() < 0.1 && right.pitch_degrees.abs() < 0.1);
        assert!(up.pitch_degrees > 10.0 && up.yaw_degrees.abs() < 0.1, "{up:?}");
    }

    #[test]
    fn a_tilted_head_is_not_turned() {
        let (sin, cos) = 0.4_f32.sin_cos();
        let tilted = TEMPLATE.map(|p| Point { x: cos * p.x - sin * p.y, y: sin * p.x + cos * p.y });
        let quality = FaceQuality::of(&photo(|_, _| 99), 1.0, &face(tilted), &TEMPLATE, &TEMPLATE);
        assert!((quality.roll_degrees - 22.9).abs() < 0.1 && quality.yaw_degrees.abs() < 0.1, "{quality:?}");
    }
}
