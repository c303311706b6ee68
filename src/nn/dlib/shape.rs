//! Reads dlib's predictors of five landmarks (`.dat`): ensembles of regression trees (Kazemi and Sullivan, "One
//! Millisecond Face Alignment with an Ensemble of Regression Trees", 2014).
//!
//! The file has a version, the average shape, the forests (one a cascade; a tree is its splits and its leaves), and for
//! each cascade the pixels that it compares: first the landmark near each, then the offset from that landmark. Every
//! cascade must have as many trees, splits and pixels as the first, so that the numbers form tensors. Counts are
//! compared with the bytes left before anything is allocated, and every index with its range, so users of the tensors
//! need no further checks.

use super::numbers::Reader;
use crate::nn::{Dtype, TensorData};

/// The prefix of a predictor's tensors.
pub const SHAPE_PREFIX: &str = "shape.";

const N_POINTS: usize = 5;

/// The minimum size of an integer and of a real number, in bytes.
const NUMBER_BYTES: usize = 2;
const REAL_BYTES: usize = 2 * NUMBER_BYTES;

/// Parses a five-point shape predictor written by dlib into these tensors:
///
/// | tensor | shape | content |
/// |---|---|---|
/// | `shape.anchors` | `[cascades, pixels]`, i64 | the landmark near each pixel |
/// | `shape.deltas` | `[cascades, pixels, 2]` | the offset from that landmark, in the unit square |
/// | `shape.initial` | `[5, 2]` | the average shape in the unit square |
/// | `shape.leaves` | `[cascades, trees, splits + 1, 10]` | what a leaf adds to the shape |
/// | `shape.splits` | `[cascades, trees, splits, 2]`, i64 | the two pixels that a split compares |
/// | `shape.thresholds` | `[cascades, trees, splits]` | the difference above which a split goes left |
///
/// # Errors
/// What is wrong with the bytes, and where.
pub fn parse_dlib_shape(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let mut reader = Reader::new(bytes);
    let ensemble = Ensemble::read(&mut reader).map_err(|why| format!("at byte {}: {why}", reader.at))?;
    match reader.n_left() {
        0 => Ok(ensemble.tensors()),
        n_left => Err(format!("{n_left} bytes are left behind the predictor")),
    }
}

#[derive(Default)]
struct Ensemble {
    initial: Vec<f32>,
    splits: Vec<i64>,
    thresholds: Vec<f32>,
    leaves: Vec<f32>,
    anchors: Vec<i64>,
    deltas: Vec<f32>,
    n_cascades: usize,
    n_trees: Same,
    n_splits: Same,
    n_pixels: Same,
}

/// A length that must be the same everywhere.
#[derive(Default)]
struct Same(Option<usize>);

impl Same {
    fn check(&mut self, n: usize, what: &str) -> Result<(), String> {
        match *self.0.get_or_insert(n) {
            0 => Err(format!("{what}: there are none")),
            first if first != n => Err(format!("{what}: {n} where there were {first} before")),
            _ => Ok(()),
        }
    }

    fn get(&self) -> usize {
        self.0.unwrap_or(0)
    }
}

impl Ensemble {
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        reader.expect_number("the predictor's version", 1)?;
        let mut ensemble = Self { initial: points(reader, "the average shape")?, ..Self::default() };
        ensemble.n_cascades = reader.count("the cascades", NUMBER_BYTES)?;
        if ensemble.n_cascades == 0 {
            return Err("the cascades: there are none".to_owned());
        }
        for cascade in 0..ensemble.n_cascades {
            ensemble.forest(reader).map_err(|why| format!("cascade {cascade}, {why}"))?;
        }
        ensemble.expect_cascades(reader, "the pixels' landmarks")?;
        for cascade in 0..ensemble.n_cascades {
            ensemble.anchors(reader).map_err(|why| format!("cascade {cascade}, {why}"))?;
        }
        ensemble.check_splits()?;
        ensemble.expect_cascades(reader, "the pixels' ways")?;
        for cascade in 0..ensemble.n_cascades {
            ensemble.deltas(reader).map_err(|why| format!("cascade {cascade}, {why}"))?;
        }
        Ok(ensemble)
    }

    fn forest(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let n_trees = reader.count("the trees", 2 * NUMBER_BYTES)?;
        self.n_trees.check(n_trees, "the trees")?;
        (0..n_trees).try_for_each(|tree| self.tree(reader).map_err(|why| format!("tree {tree}: {why}")))
    }

    fn tree(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let n_splits = reader.count("the splits", 2 * NUMBER_BYTES + REAL_BYTES)?;
        self.n_splits.check(n_splits, "the splits")?;
        for _ in 0..n_splits {
            self.splits.extend([reader.number("a split's pixel")?, reader.number("a split's pixel")?]);
            self.thresholds.push(reader.float("a split's threshold")?);
        }
        let n_leaves = reader.count("the leaves", 2 * N_POINTS * REAL_BYTES)?;
        if n_leaves != n_splits + 1 || !n_leaves.is_power_of_two() {
            return Err(format!("{n_splits} splits and {n_leaves} leaves do not form a full tree"));
        }
        for _ in 0..n_leaves {
            self.leaves.extend(points(reader, "a leaf")?);
        }
        Ok(())
    }

    fn expect_cascades(&self, reader: &mut Reader<'_>, what: &str) -> Result<(), String> {
        match reader.count(what, NUMBER_BYTES)? {
            n if n == self.n_cascades => Ok(()),
            n => Err(format!("{what} have {n} cascades, the forests have {}", self.n_cascades)),
        }
    }

    fn anchors(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let n_pixels = reader.count("the pixels' landmarks", NUMBER_BYTES)?;
        self.n_pixels.check(n_pixels, "the pixels' landmarks")?;
        for _ in 0..n_pixels {
            let anchor = reader.number("a pixel's landmark")?;
            if !(0..N_POINTS as i64).contains(&anchor) {
                return Err(format!("a pixel refers to landmark {anchor} of {N_POINTS}"));
            }
            self.anchors.push(anchor);
        }
        Ok(())
    }

    fn deltas(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let n_pixels = reader.count("the pixels' ways", 2 * REAL_BYTES)?;
        self.n_pixels.check(n_pixels, "the pixels' ways")?;
        for _ in 0..2 * n_pixels {
            self.deltas.push(reader.float("a pixel's way")?);
        }
        Ok(())
    }

    /// Checks the splits' pixels. The file states the number of pixels only behind the trees.
    fn check_splits(&self) -> Result<(), String> {
        let n_pixels = self.n_pixels.get();
        let Some(i) = self.splits.iter().position(|pixel| !(0..n_pixels as i64).contains(pixel)) else {
            return Ok(());
        };
        let tree = i / (2 * self.n_splits.get());
        let (cascade, tree) = (tree / self.n_trees.get(), tree % self.n_trees.get());
        Err(format!("cascade {cascade}, tree {tree}: a split compares pixel {} of {n_pixels}", self.splits[i]))
    }

    fn tensors(self) -> Vec<TensorData> {
        let (n_cascades, n_trees) = (self.n_cascades, self.n_trees.get());
        let (n_splits, n_pixels) = (self.n_splits.get(), self.n_pixels.get());
        let tensor = |name: &str, shape: &[usize], dtype, bytes| {
            let shape = shape.iter().map(|&n| n as i64).collect();
            TensorData { name: name.to_owned(), shape, dtype, bytes }
        };
        let integers = |name, shape: &[usize], values: &[i64]| {
            tensor(name, shape, Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        let floats = |name, shape: &[usize], values: &[f32]| {
            tensor(name, shape, Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        vec![
            integers("shape.anchors", &[n_cascades, n_pixels], &self.anchors),
            floats("shape.deltas", &[n_cascades, n_pixels, 2], &self.deltas),
            floats("shape.initial", &[N_POINTS, 2], &self.initial),
            floats("shape.leaves", &[n_cascades, n_trees, n_splits + 1, 2 * N_POINTS], &self.leaves),
            integers("shape.splits", &[n_cascades, n_trees, n_splits, 2], &self.splits),
            floats("shape.thresholds", &[n_cascades, n_trees, n_splits], &self.thresholds),
        ]
    }
}

/// Reads five points: a matrix of one column. dlib writes its sides as negative numbers; earlier versions wrote
/// positive ones.
fn points(reader: &mut Reader<'_>, what: &str) -> Result<Vec<f32>, String> {
    let sides = (reader.number(what)?, reader.number(what)?);
    let n = 2 * N_POINTS as i64;
    if sides != (-n, -1) && sides != (n, 1) {
        let (rows, columns) = (sides.0.unsigned_abs(), sides.1.unsigned_abs());
        return Err(format!("{what} has {rows} by {columns} numbers; only predictors of {N_POINTS} points are read"));
    }
    (0..n).map(|_| reader.float(what)).collect()
}

#[cfg(test)]
mod tests;
