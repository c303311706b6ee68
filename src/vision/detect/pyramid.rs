//! Lays out a photo at all detection scales on one canvas.

use std::sync::Arc;

use crate::vision::{DecodedImage, area::area_resize};

/// How faces are searched for; part of a detector's manifest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CascadeSettings {
    /// The smallest face that is searched for, in pixels of the photo at detection size.
    pub min_face_px: f64,
    /// The ratio of each size to the one before, above 0 and below 1.
    pub factor: f64,
    /// The minimum scores of the three networks, 0 to 1.
    pub thresholds: [f32; 3],
    /// The maximum of the photo's longer side at detection, in pixels.
    pub max_side_px: u32,
}

impl CascadeSettings {
    /// Returns the longest side at detection, in pixels: the setting's or the largest canvas's.
    pub(super) fn longest_side_px(&self) -> u32 {
        self.max_side_px.min(MAX_SIDE_PX)
    }
}

impl Default for CascadeSettings {
    /// The published networks' settings, for photos of up to 1024 pixels.
    fn default() -> Self {
        Self { min_face_px: 20.0, factor: 0.709, thresholds: [0.6, 0.7, 0.7], max_side_px: MAX_SIDE_PX }
    }
}

/// The longest side for which there is a canvas.
const MAX_SIDE_PX: u32 = 1024;

/// Width and height of the canvases, by area. Few, because kernels are prepared and cached by shape.
const CANVASES: [(u32, u32); 9] =
    [(224, 192), (336, 304), (512, 448), (704, 448), (512, 640), (768, 672), (1088, 704), (800, 960), (1088, 960)];

/// The side of the first network's field of view, in pixels.
const CELL_PX: u32 = 12;

/// The distance between cells, in pixels.
const STRIDE_PX: u32 = 2;

/// More than the levels of any photo up to the longest side.
const MAX_LEVELS: usize = 32;

/// The photo at one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    /// The level's side divided by the photo's.
    scale: f64,
    /// Its position on the canvas; even, so that the cells align with the level's edges.
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// A photo at detection size, with all its levels on one canvas.
#[derive(Clone, Debug)]
pub struct Pyramid {
    /// Shared, so that later users of the photo do not keep the canvas, which is several times as large.
    photo: Arc<DecodedImage>,
    canvas: (u32, u32),
    pixels: Vec<f32>,
    levels: Vec<Level>,
}

/// The first network's output for a canvas.
#[derive(Clone, Copy, Debug)]
pub struct ProposalMap<'a> {
    /// The number of cells in a row.
    pub width: usize,
    /// `height * width` probabilities that a cell shows a face.
    pub scores: &'a [f32],
    /// Four planes of `height * width`: offsets of the box's left, top, right and bottom, as fractions of its sides.
    pub offsets: &'a [f32],
}

/// A cell in which the first network sees a face.
pub(super) struct Cell {
    /// The index of the level.
    pub(super) level_idx: usize,
    /// In pixels of the photo: left, top, right, bottom.
    pub(super) edges: [f32; 4],
    pub(super) score: f32,
    pub(super) offsets: [f32; 4],
}

impl Pyramid {
    /// Lays out a photo. Reduces it first if its longer side is over the settings' or the canvases' limit. A photo
    /// smaller than the smallest face has no levels.
    #[must_use]
    pub fn new(photo: impl Into<Arc<DecodedImage>>, settings: &CascadeSettings) -> Self {
        let photo = within(photo.into(), settings.longest_side_px());
        let sizes = sizes(photo.width_px(), photo.height_px(), settings);
        // The largest canvas holds all levels of every photo up to the limit; a test tries them.
        let (canvas, levels) = CANVASES
            .into_iter()
            .find_map(|canvas| Some((canvas, layout(canvas, &sizes)?)))
            .unwrap_or((CANVASES[0], Vec::new()));
        // Zero is the middle grey between the levels.
        let mut pixels = vec![0.0; canvas.0 as usize * canvas.1 as usize * 3];
        for level in &levels {
            let at = (level.top as usize * canvas.0 as usize + level.left as usize) * 3;
            let window = (0, 0, photo.width_px(), photo.height_px());
            area_resize(&photo, window, (level.width, level.height), &mut pixels[at..], canvas.0 as usize * 3);
        }
        Self { photo, canvas, pixels, levels }
    }

    /// The photo at detection size.
    #[must_use]
    pub fn photo(&self) -> &Arc<DecodedImage> {
        &self.photo
    }

    /// The memory that photo and canvas take, in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.photo.rgb().len() + size_of_val(self.pixels.as_slice())
    }

    /// The canvas: width and height in pixels, and rows of interleaved RGB in the networks' input range.
    #[must_use]
    pub fn canvas(&self) -> (u32, u32, &[f32]) {
        (self.canvas.0, self.canvas.1, &self.pixels)
    }

    /// Returns the cells that score at least `threshold`, each within one level. Where a map is smaller than the
    /// canvas, the rest has no cells.
    pub(super) fn cells(&self, map: &ProposalMap<'_>, threshold: f32) -> Vec<Cell> {
        let n_cells = map.scores.len();
        let mut cells = Vec::new();
        for (level_idx, level) in self.levels.iter().enumerate() {
            for row in 0..n_cells_along(level.height) {
                let at = (level.top / STRIDE_PX + row) as usize * map.width + (level.left / STRIDE_PX) as usize;
                for column in 0..n_cells_along(level.width) {
                    let at = at + column as usize;
                    let Some(&score) = map.scores.get(at).filter(|score| **score >= threshold) else { continue };
                    let offset = |plane: usize| map.offsets.get(plane * n_cells + at).copied().unwrap_or(0.0);
                    // The published code rounds to whole pixels here, and the later networks expect that.
                    let edge = |cell: u32, more: u32| (f64::from(cell * STRIDE_PX + more) / level.scale).floor() as f32;
                    cells.push(Cell {
                        level_idx,
                        edges: [edge(column, 1), edge(row, 1), edge(column, CELL_PX), edge(row, CELL_PX)],
                        score,
                        offsets: [offset(0), offset(1), offset(2), offset(3)],
                    });
                }
            }
        }
        cells
    }

    /// The number of levels.
    pub(super) fn n_levels(&self) -> usize {
        self.levels.len()
    }
}

/// The number of cells along a side: a convolution of 3, a pooling of 2 that rounds up, two convolutions of 3.
fn n_cells_along(side_px: u32) -> u32 {
    side_px.saturating_sub(2).div_ceil(STRIDE_PX).saturating_sub(4)
}

fn within(photo: Arc<DecodedImage>, max_side_px: u32) -> Arc<DecodedImage> {
    let (width, height) = (photo.width_px(), photo.height_px());
    let long = width.max(height);
    if long <= max_side_px {
        return photo;
    }
    let shrunk = |side: u32| (u64::from(side) * u64::from(max_side_px) / u64::from(long)).max(1) as u32;
    Arc::new(photo.resized(shrunk(width), shrunk(height)))
}

/// Returns the scale, width and height of each level, the largest first.
fn sizes(width: u32, height: u32, settings: &CascadeSettings) -> Vec<(f64, u32, u32)> {
    let cell = f64::from(CELL_PX);
    let mut scale = cell / settings.min_face_px;
    let mut short = f64::from(width.min(height)) * scale;
    let mut sizes = Vec::new();
    while short >= cell && sizes.len() < MAX_LEVELS {
        let scaled = |side: u32| (f64::from(side) * scale + 1.0) as u32;
        sizes.push((scale, scaled(width), scaled(height)));
        scale *= settings.factor;
        short *= settings.factor;
    }
    sizes
}

/// Places each level, or returns `None` if the canvas is too small. Guillotine packing: a level goes into the smallest
/// free rectangle that holds it, and leaves one to its right and one below.
fn layout(canvas: (u32, u32), sizes: &[(f64, u32, u32)]) -> Option<Vec<Level>> {
    struct Free {
        left: u32,
        top: u32,
        width: u32,
        height: u32,
    }
    // Even, and with a gap for the last, rounded-up cell.
    let taken = |side: u32| (side + 2).next_multiple_of(STRIDE_PX);
    let mut free = vec![Free { left: 0, top: 0, width: canvas.0, height: canvas.1 }];
    let mut levels = Vec::new();
    for &(scale, width, height) in sizes {
        let fitting = free.iter().enumerate().filter(|(_, f)| f.width >= width && f.height >= height);
        let (best, _) = fitting.min_by_key(|(_, f)| u64::from(f.width) * u64::from(f.height))?;
        let Free { left, top, width: free_width, height: free_height } = free.swap_remove(best);
        levels.push(Level { scale, left, top, width, height });
        let (right, below) = (taken(width).min(free_width), taken(height).min(free_height));
        free.push(Free { left: left + right, top, width: free_width - right, height: below });
        free.push(Free { left, top: top + below, width: free_width, height: free_height - below });
    }
    Some(levels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grey(width: u32, height: u32) -> DecodedImage {
        DecodedImage::from_rgb(width, height, vec![90; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn a_face_of_the_usual_size_takes_the_smallest_canvas() {
        let pyramid = Pyramid::new(grey(200, 200), &CascadeSettings::default());
        assert_eq!(pyramid.canvas, CANVASES[0]);
        let sides: Vec<_> = pyramid.levels.iter().map(|level| level.width).collect();
        assert_eq!(sides, [121, 86, 61, 43, 31, 22, 16]);
    }

    #[test]
    fn a_photo_smaller_than_a_face_has_no_levels() {
        assert_eq!(Pyramid::new(grey(19, 300), &CascadeSettings::default()).n_levels(), 0);
        assert_eq!(Pyramid::new(grey(1, 1), &CascadeSettings::default()).n_levels(), 0);
    }

    #[test]
    fn a_cell_is_where_it_lies_in_the_photo() {
        let pyramid = Pyramid::new(grey(200, 100), &CascadeSettings::default());
        let width = pyramid.canvas.0 as usize / 2;
        let mut scores = vec![0.0; width * pyramid.canvas.1 as usize / 2];
        let second = pyramid.levels[1];
        scores[(second.top as usize / 2 + 3) * width + second.left as usize / 2 + 5] = 0.9;
        let cells = pyramid.cells(&ProposalMap { width, scores: &scores, offsets: &[] }, 0.6);
        assert_eq!(cells.len(), 1);
        let at = |cell: f64| (cell / (0.6 * 0.709)).floor() as f32;
        assert_eq!(cells[0].edges, [at(11.0), at(7.0), at(22.0), at(18.0)]);
        assert_eq!(cells[0].level_idx, 1);
    }

    proptest! {
        #[test]
        fn every_photo_has_a_canvas_and_its_sizes_do_not_touch(width in 1..1500u32, height in 1..1500u32) {
            let long = width.max(height).max(1024);
            let (width, height) = (width * 1024 / long, height * 1024 / long);
            let sizes = sizes(width, height, &CascadeSettings::default());
            let (canvas, levels) = CANVASES.into_iter().find_map(|c| Some((c, layout(c, &sizes)?))).unwrap();
            for (i, a) in levels.iter().enumerate() {
                prop_assert!(a.left + a.width <= canvas.0 && a.top + a.height <= canvas.1);
                prop_assert!(a.left % 2 == 0 && a.top % 2 == 0);
                for b in &levels[i + 1..] {
                    let apart = a.left + a.width < b.left || b.left + b.width < a.left
                        || a.top + a.height < b.top || b.top + b.height < a.top;
                    prop_assert!(apart, "{a:?} {b:?}");
                }
            }
        }
    }
}
