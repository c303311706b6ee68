//! The steps between the detector's networks: filters and corrects boxes, and cuts crops out for the next network.

use super::{
    boxes::{BoundingBox, DetectedFace, Overlap, suppress},
    pyramid::{CascadeSettings, ProposalMap, Pyramid},
};
use crate::vision::{area::area_resize, geometry::Point};

/// The side of the crops for the second and the third network, in pixels.
pub const CROP_SIDES_PX: [u32; 2] = [24, 48];

/// The maximum number of boxes for the second network; the best are kept. A photo of a crowd has hundreds. Without a
/// limit, a pattern made to resemble faces everywhere would occupy the device for seconds.
const MAX_PROPOSALS: usize = 512;

/// The maximum number of cells that suppression compares, within a level and over all levels; the best are kept. The
/// limit is needed because each cell is compared with all that were kept.
const MAX_CELLS: usize = 2048;

/// The largest allowed overlaps: within a level, between levels, after the second network, after the third network.
const MOST_OVERLAP: [f32; 4] = [0.5, 0.7, 0.7, 0.7];

/// A face with at least this score is taken for upright. Below it are 9 in 100 of the upright faces that are answered,
/// and all but 1 in 300 of the faces upside down; measured with the published weights.
pub const UPRIGHT_SCORE: f32 = 0.9998;

/// Boxes that may be faces.
#[derive(Clone, Debug, Default)]
pub struct Proposals {
    boxes: Vec<BoundingBox>,
}

/// The output of the second or the third network for one crop.
#[derive(Clone, Debug, PartialEq)]
pub struct StageOutput {
    /// The probability that the crop is a face.
    pub score: f32,
    /// Offsets of the box's left, top, right and bottom, as fractions of its sides.
    pub offsets: [f32; 4],
    /// From the third network: five x, then five y, as fractions of the box's sides; from the second: zeros.
    pub landmarks: [f32; 10],
}

impl Proposals {
    /// Returns the boxes that the first network proposes.
    #[must_use]
    pub fn of_map(pyramid: &Pyramid, map: &ProposalMap<'_>, settings: &CascadeSettings) -> Self {
        let cells = pyramid.cells(map, settings.thresholds[0]);
        let mut kept = Vec::new();
        for level_idx in 0..pyramid.n_levels() {
            let of_level = cells.iter().filter(|cell| cell.level_idx == level_idx);
            let of_level = best(of_level.collect(), |cell| cell.score);
            let boxes: Vec<_> = of_level.iter().map(|cell| (edges(cell.edges), cell.score)).collect();
            kept.extend(suppress(&boxes, MOST_OVERLAP[0], Overlap::Union).into_iter().map(|i| of_level[i]));
        }
        let kept = best(kept, |cell| cell.score);
        let boxes: Vec<_> = kept.iter().map(|cell| (edges(cell.edges), cell.score)).collect();
        let stay = suppress(&boxes, MOST_OVERLAP[1], Overlap::Union);
        let refined = |i: usize| boxes[i].0.regressed(kept[i].offsets, 0.0).squared();
        Self { boxes: stay.into_iter().take(MAX_PROPOSALS).map(refined).collect() }.within(pyramid)
    }

    /// Returns the number of boxes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Returns true if there are no boxes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// Cuts out the crops for the next network: consecutive squares of `side_px`, as rows of interleaved RGB in the
    /// networks' input range.
    #[must_use]
    pub fn crops(&self, pyramid: &Pyramid, side_px: u32) -> Vec<f32> {
        let photo = pyramid.photo();
        let n_numbers = side_px as usize * side_px as usize * 3;
        let mut pixels = vec![0.0; self.boxes.len() * n_numbers];
        for (bounds, crop) in self.boxes.iter().zip(pixels.chunks_exact_mut(n_numbers)) {
            if let Some(window) = window(bounds, photo.width_px(), photo.height_px()) {
                area_resize(photo, window, (side_px, side_px), crop, side_px as usize * 3);
            }
        }
        pixels
    }

    /// Returns the boxes that are left after the second network; `outputs` has one entry per box.
    #[must_use]
    pub fn refined(&self, pyramid: &Pyramid, outputs: &[StageOutput], settings: &CascadeSettings) -> Self {
        let sure = self.above(outputs, settings.thresholds[1]);
        let boxes: Vec<_> = sure.iter().map(|(bounds, output)| (*bounds, output.score)).collect();
        let kept = suppress(&boxes, MOST_OVERLAP[2], Overlap::Union);
        let refined = |i: usize| boxes[i].0.regressed(sure[i].1.offsets, 1.0).squared();
        Self { boxes: kept.into_iter().map(refined).collect() }.within(pyramid)
    }

    /// Returns the faces that are left after the third network, the largest first; `outputs` has one entry per box.
    ///
    /// If a box extends beyond the photo, its crop shows only the part within, stretched to a square. The published
    /// code applies the network's output to the whole box. Boxes and landmarks are computed in the same way, so that
    /// they can be compared with that code. The alignment points are relative to the part within, so they are where the
    /// network found them.
    #[must_use]
    pub fn faces(&self, pyramid: &Pyramid, outputs: &[StageOutput], settings: &CascadeSettings) -> Vec<DetectedFace> {
        let photo = pyramid.photo();
        let face = |(bounds, output): (BoundingBox, &StageOutput)| {
            let (width, height) = (bounds.width() + 1.0, bounds.height() + 1.0);
            let landmark = |i: usize| Point {
                x: bounds.left - 1.0 + width * output.landmarks[i],
                y: bounds.top - 1.0 + height * output.landmarks[5 + i],
            };
            let landmarks = std::array::from_fn(landmark);
            let seen = window(&bounds, photo.width_px(), photo.height_px()).map(|window| {
                let [left, top, width, height] = [window.0, window.1, window.2, window.3].map(|px| px as f32);
                let [x, y] = [0, 5].map(|first| &output.landmarks[first..]);
                std::array::from_fn(|i| Point { x: left + width * x[i], y: top + height * y[i] })
            });
            let alignment = seen.unwrap_or(landmarks);
            let bounds = bounds.regressed(output.offsets, 1.0);
            DetectedFace { bounds, score: output.score, landmarks, alignment, rotated_score: None }
        };
        let sure: Vec<DetectedFace> = self.above(outputs, settings.thresholds[2]).into_iter().map(face).collect();
        let boxes: Vec<_> = sure.iter().map(|face| (face.bounds, face.score)).collect();
        let kept = suppress(&boxes, MOST_OVERLAP[3], Overlap::Smaller);
        let mut faces: Vec<DetectedFace> = kept.into_iter().map(|i| sure[i]).collect();
        faces.sort_by(|a, b| b.bounds.area().total_cmp(&a.bounds.area()));
        faces
    }

    fn above<'a>(&self, outputs: &'a [StageOutput], threshold: f32) -> Vec<(BoundingBox, &'a StageOutput)> {
        self.boxes.iter().copied().zip(outputs).filter(|(_, output)| output.score > threshold).collect()
    }

    /// Removes the boxes that contain no pixel of the photo.
    fn within(mut self, pyramid: &Pyramid) -> Self {
        let photo = pyramid.photo();
        self.boxes.retain(|bounds| window(bounds, photo.width_px(), photo.height_px()).is_some());
        self
    }
}

/// Cuts out the faces rotated by 180 degrees, in the form of [`Proposals::crops`]. The third network's scores for them
/// show which faces are upside down.
#[must_use]
pub fn rotated_crops<'a>(pyramid: &Pyramid, faces: impl IntoIterator<Item = &'a DetectedFace>) -> Vec<f32> {
    let squares = Proposals { boxes: faces.into_iter().map(|face| face.bounds.squared()).collect() };
    let mut pixels = squares.crops(pyramid, CROP_SIDES_PX[1]);
    let n_numbers = (CROP_SIDES_PX[1] * CROP_SIDES_PX[1] * 3) as usize;
    for crop in pixels.chunks_exact_mut(n_numbers) {
        // Backwards, then each pixel's channels the right way round again.
        crop.reverse();
        crop.chunks_exact_mut(3).for_each(<[f32]>::reverse);
    }
    pixels
}

fn edges([left, top, right, bottom]: [f32; 4]) -> BoundingBox {
    BoundingBox { left, top, right, bottom }
}

/// Returns the part of the photo within a box: left, top, width and height in whole pixels; `None` if it is empty.
/// Boxes count pixels from one, as in the published code.
fn window(bounds: &BoundingBox, width: u32, height: u32) -> Option<(u32, u32, u32, u32)> {
    // Casts saturate.
    let first = |edge: f32| (edge.trunc() as i64).max(1) - 1;
    let end = |edge: f32, side: u32| (edge.trunc() as i64).min(i64::from(side));
    let (left, top) = (first(bounds.left), first(bounds.top));
    let (right, bottom) = (end(bounds.right, width), end(bounds.bottom, height));
    (right > left && bottom > top).then(|| (left as u32, top as u32, (right - left) as u32, (bottom - top) as u32))
}

/// Returns the [`MAX_CELLS`] cells with the highest scores, in their original order.
fn best<T>(cells: Vec<T>, score: impl Fn(&T) -> f32) -> Vec<T> {
    if cells.len() <= MAX_CELLS {
        return cells;
    }
    let mut ranked: Vec<(usize, T)> = cells.into_iter().enumerate().collect();
    ranked.select_nth_unstable_by(MAX_CELLS, |(i, a), (j, b)| score(b).total_cmp(&score(a)).then(i.cmp(j)));
    ranked.truncate(MAX_CELLS);
    ranked.sort_unstable_by_key(|(i, _)| *i);
    ranked.into_iter().map(|(_, cell)| cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::DecodedImage;

    fn pyramid() -> Pyramid {
        let rgb = (0..200 * 200).flat_map(|i| [(i % 200) as u8, (i / 200) as u8, 7]).collect();
        Pyramid::new(DecodedImage::from_rgb(200, 200, rgb).unwrap(), &CascadeSettings::default())
    }

    fn sure(score: f32) -> StageOutput {
        StageOutput { score, offsets: [0.0; 4], landmarks: [0.3, 0.7, 0.5, 0.35, 0.65, 0.4, 0.4, 0.6, 0.8, 0.8] }
    }

    #[test]
    fn a_box_beyond_the_photo_is_cut_to_it() {
        let at = |left, top, right, bottom| window(&edges([left, top, right, bottom]), 200, 100);
        assert_eq!(at(-5.0, -5.0, 10.0, 20.0), Some((0, 0, 10, 20)));
        assert_eq!(at(190.5, 90.0, 300.0, 300.0), Some((189, 89, 11, 11)));
        assert_eq!(at(201.0, 0.0, 300.0, 50.0), None);
        assert_eq!(at(-50.0, 0.0, -3.0, 50.0), None);
        assert_eq!(at(f32::NAN, f32::NAN, f32::INFINITY, 5.0), Some((0, 0, 200, 5)));
    }

    #[test]
    fn faces_come_largest_first_with_their_landmarks() {
        let boxes = vec![edges([10.0, 10.0, 50.0, 50.0]), edges([80.0, 80.0, 180.0, 180.0])];
        let proposals = Proposals { boxes };
        let crops = proposals.crops(&pyramid(), 24);
        assert_eq!(crops.len(), 2 * 24 * 24 * 3);
        let faces = proposals.faces(&pyramid(), &[sure(0.95), sure(0.9)], &CascadeSettings::default());
        assert_eq!(faces.len(), 2);
        assert_eq!(faces[0].bounds.left, 80.0);
        assert!((faces[0].landmarks[0].x - (79.0 + 101.0 * 0.3)).abs() < 1e-3);
        assert!(proposals.faces(&pyramid(), &[sure(0.5), sure(0.6)], &CascadeSettings::default()).is_empty());
    }

    #[test]
    fn a_face_beyond_the_edge_is_cut_out_where_it_was_seen() {
        let proposals = Proposals { boxes: vec![edges([-99.0, -99.0, 101.0, 101.0])] };
        let faces = proposals.faces(&pyramid(), &[sure(0.99)], &CascadeSettings::default());
        // Of the box of 201 pixels the network saw the last 101, and in them the first eye at three tenths.
        assert!((faces[0].landmarks[0].x - (-100.0 + 201.0 * 0.3)).abs() < 1e-3, "{faces:?}");
        assert!((faces[0].alignment[0].x - 101.0 * 0.3).abs() < 1e-3, "{faces:?}");
    }

    #[test]
    fn a_face_is_shown_rotated_by_half_a_turn() {
        let proposals = Proposals { boxes: vec![edges([80.0, 80.0, 180.0, 180.0])] };
        let face = proposals.faces(&pyramid(), &[sure(0.95)], &CascadeSettings::default())[0];
        let upright = Proposals { boxes: vec![face.bounds.squared()] }.crops(&pyramid(), 48);
        let rotated = rotated_crops(&pyramid(), [&face]);
        assert_eq!(rotated.len(), upright.len());
        assert_eq!(rotated[..3], upright[upright.len() - 3..]);
        assert_eq!(rotated[48 * 3 * 5..][..3], upright[48 * 3 * 43 - 3..][..3]);
    }

    #[test]
    fn a_map_of_faces_everywhere_is_bounded() {
        let pyramid = pyramid();
        let (width, height, _) = pyramid.canvas();
        let n = (width / 2 * height / 2) as usize;
        let (scores, offsets) = (vec![1.0; n], vec![0.0; 4 * n]);
        let map = ProposalMap { width: width as usize / 2, scores: &scores, offsets: &offsets };
        let proposals = Proposals::of_map(&pyramid, &map, &CascadeSettings::default());
        assert!(!proposals.is_empty() && proposals.len() <= MAX_PROPOSALS);
    }

    #[test]
    fn the_best_cells_stay_in_their_order() {
        let scores: Vec<f32> = (0..5000).map(|i| (i * 37 % 5000) as f32).collect();
        let kept = best(scores.iter().enumerate().collect(), |(_, score)| **score);
        assert_eq!(kept.len(), MAX_CELLS);
        assert!(kept.iter().all(|(_, score)| **score >= (5000 - MAX_CELLS) as f32));
        assert!(kept.is_sorted_by_key(|(i, _)| *i));
        assert_eq!(best(vec![1.0, 3.0], |score| *score), [1.0, 3.0]);
    }
}
