//! dlib's shape predictors: ensembles of regression trees that place landmarks (Kazemi and Sullivan, "One Millisecond
//! Face Alignment with an Ensemble of Regression Trees", 2014).
//!
//! The file: a version, the average shape, the forests (one a cascade; a tree is its splits and its leaves), and for
//! each cascade the pixels that it looks at, by the nearest landmark and the way from there.

use super::{Dtype, TensorData, dlib_numbers::Reader};

/// The tensors in a shape predictor's bytes: `shape.initial` `[points, 2]`, `shape.anchors` `[cascades, pixels]`,
/// `shape.deltas` `[cascades, pixels, 2]`, `shape.splits` `[cascades, trees, splits, 2]`, `shape.thresholds`
/// `[cascades, trees, splits]` and `shape.leaves` `[cascades, trees, leaves, 2 * points]`.
///
/// # Errors
/// What is wrong with them, and where.
pub fn parse_dlib_shape(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let mut reader = Reader::new(bytes);
    let shape = Shape::read(&mut reader).map_err(|why| format!("at byte {}: {why}", reader.at))?;
    match bytes.len() - reader.at {
        0 => Ok(shape.tensors()),
        n_left => Err(format!("{n_left} bytes are left behind the predictor")),
    }
}

/// Rows that must all be as long as the first.
#[derive(Default)]
struct Rectangle {
    /// How long each dimension is, the outermost first; empty until the first row has been read.
    shape: Vec<usize>,
}

impl Rectangle {
    fn check(&mut self, depth: usize, n: usize, what: &str) -> Result<(), String> {
        match self.shape.get(depth) {
            None => self.shape.push(n),
            Some(&first) if first != n => return Err(format!("{what}: {n} where there were {first} before")),
            Some(_) => {}
        }
        Ok(())
    }

    fn dimensions(&self) -> Vec<i64> {
        self.shape.iter().map(|&n| n as i64).collect()
    }
}

#[derive(Default)]
struct Shape {
    initial: Vec<f32>,
    splits: Vec<i64>,
    thresholds: Vec<f32>,
    leaves: Vec<f32>,
    anchors: Vec<i64>,
    deltas: Vec<f32>,
    /// Cascades, trees, splits.
    of_splits: Rectangle,
    /// Cascades, trees, leaves, numbers.
    of_leaves: Rectangle,
    /// Cascades, pixels.
    of_anchors: Rectangle,
    of_deltas: Rectangle,
}

impl Shape {
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        reader.expect_number("the predictor's version", 1)?;
        let mut shape = Self { initial: column(reader, "the average shape")?, ..Self::default() };
        if shape.initial.is_empty() || !shape.initial.len().is_multiple_of(2) {
            return Err(format!("the average shape has {} numbers", shape.initial.len()));
        }
        let n_cascades = reader.count("the forests", 1)?;
        shape.of_splits.check(0, n_cascades, "the forests")?;
        shape.of_leaves.check(0, n_cascades, "the forests")?;
        for _ in 0..n_cascades {
            let n_trees = reader.count("a forest's trees", 1)?;
            shape.of_splits.check(1, n_trees, "a forest's trees")?;
            shape.of_leaves.check(1, n_trees, "a forest's trees")?;
            for _ in 0..n_trees {
                shape.read_tree(reader)?;
            }
        }
        shape.read_pixels(reader, n_cascades)?;
        Ok(shape)
    }

    fn read_tree(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let n_splits = reader.count("a tree's splits", 4)?;
        self.of_splits.check(2, n_splits, "a tree's splits")?;
        for _ in 0..n_splits {
            self.splits.extend([reader.number("a split's pixel")?, reader.number("a split's pixel")?]);
            self.thresholds.push(reader.float("a split's threshold")?);
        }
        let n_leaves = reader.count("a tree's leaves", 2)?;
        if n_leaves != n_splits + 1 {
            return Err(format!("a tree of {n_splits} splits has {n_leaves} leaves"));
        }
        self.of_leaves.check(2, n_leaves, "a tree's leaves")?;
        for _ in 0..n_leaves {
            let leaf = column(reader, "a leaf")?;
            self.of_leaves.check(3, leaf.len(), "a leaf")?;
            self.leaves.extend(leaf);
        }
        Ok(())
    }

    fn read_pixels(&mut self, reader: &mut Reader<'_>, n_cascades: usize) -> Result<(), String> {
        for what in ["the pixels' landmarks", "the pixels' ways"] {
            let n = reader.count(what, 1)?;
            if n != n_cascades {
                return Err(format!("{what}: {n} where there are {n_cascades} cascades"));
            }
            let is_anchors = what == "the pixels' landmarks";
            let rectangle = if is_anchors { &mut self.of_anchors } else { &mut self.of_deltas };
            rectangle.check(0, n, what)?;
            for _ in 0..n {
                let n_pixels = reader.count(what, 2)?;
                rectangle.check(1, n_pixels, what)?;
                for _ in 0..n_pixels {
                    if is_anchors {
                        self.anchors.push(reader.number(what)?);
                    } else {
                        self.deltas.extend([reader.float(what)?, reader.float(what)?]);
                    }
                }
            }
        }
        Ok(())
    }

    fn tensors(self) -> Vec<TensorData> {
        let with = |mut shape: Vec<i64>, last: i64| {
            shape.push(last);
            shape
        };
        let splits = self.of_splits.dimensions();
        vec![
            integers("shape.anchors", self.of_anchors.dimensions(), &self.anchors),
            floats("shape.deltas", with(self.of_deltas.dimensions(), 2), &self.deltas),
            floats("shape.initial", vec![self.initial.len() as i64 / 2, 2], &self.initial),
            floats("shape.leaves", self.of_leaves.dimensions(), &self.leaves),
            integers("shape.splits", with(splits.clone(), 2), &self.splits),
            floats("shape.thresholds", splits, &self.thresholds),
        ]
    }
}

/// A matrix of one column; dlib writes its sides as negative numbers.
fn column(reader: &mut Reader<'_>, what: &str) -> Result<Vec<f32>, String> {
    let (rows, columns) = (reader.number(what)?, reader.number(what)?);
    let left = (reader.bytes.len() - reader.at) as i64;
    // A real number has four bytes at least.
    if columns.abs() != 1 || rows.abs() > left / 4 {
        return Err(format!("{what} has {rows} by {columns} numbers, and {left} bytes are left"));
    }
    (0..rows.abs()).map(|_| reader.float(what)).collect()
}

fn floats(name: &str, shape: Vec<i64>, values: &[f32]) -> TensorData {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorData { name: name.to_owned(), shape, dtype: Dtype::F32, bytes }
}

fn integers(name: &str, shape: Vec<i64>, values: &[i64]) -> TensorData {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorData { name: name.to_owned(), shape, dtype: Dtype::I64, bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(n: i64, to: &mut Vec<u8>) {
        to.extend([1 | if n < 0 { 0x80 } else { 0 }, n.unsigned_abs() as u8]);
    }

    /// One cascade of one tree of one split, over two points and two pixels.
    fn stream() -> Vec<u8> {
        let mut s = Vec::new();
        let real = |n: i64, s: &mut Vec<u8>| {
            number(n, s);
            number(-1, s);
        };
        number(1, &mut s);
        [-4, -1].iter().for_each(|n| number(*n, &mut s));
        (0..4).for_each(|n| real(n, &mut s));
        [1, 1, 1, 0, 1].iter().for_each(|n| number(*n, &mut s));
        real(7, &mut s);
        number(2, &mut s);
        for leaf in 0..2 {
            [-4, -1].iter().for_each(|n| number(*n, &mut s));
            (0..4).for_each(|n| real(10 * leaf + n, &mut s));
        }
        [1, 2, 0, 1, 1, 2].iter().for_each(|n| number(*n, &mut s));
        (1..5).for_each(|n| real(n, &mut s));
        s
    }

    fn values(tensors: &[TensorData], name: &str) -> (Vec<i64>, Vec<f32>) {
        let tensor = tensors.iter().find(|t| t.name == name).unwrap();
        let values = tensor.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (tensor.shape.clone(), values)
    }

    #[test]
    fn every_part_has_its_tensor() {
        let tensors = parse_dlib_shape(&stream()).unwrap();
        assert_eq!(values(&tensors, "shape.initial"), (vec![2, 2], vec![0.0, 0.5, 1.0, 1.5]));
        assert_eq!(values(&tensors, "shape.thresholds"), (vec![1, 1, 1], vec![3.5]));
        assert_eq!(values(&tensors, "shape.leaves").0, [1, 1, 2, 4]);
        assert_eq!(values(&tensors, "shape.deltas"), (vec![1, 2, 2], vec![0.5, 1.0, 1.5, 2.0]));
        let splits = tensors.iter().find(|t| t.name == "shape.splits").unwrap();
        assert_eq!((splits.shape.as_slice(), splits.dtype), ([1, 1, 1, 2].as_slice(), Dtype::I64));
    }

    #[test]
    fn a_longer_stream_is_refused() {
        let mut longer = stream();
        longer.push(0);
        assert!(parse_dlib_shape(&longer).unwrap_err().contains("left behind"));
    }

    proptest! {
        #[test]
        fn damaged_streams_are_errors_or_whole(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = stream();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for tensor in parse_dlib_shape(&bytes).unwrap_or_default() {
                let width = if tensor.dtype == Dtype::I64 { 8 } else { 4 };
                prop_assert_eq!(tensor.shape.iter().product::<i64>() as usize * width, tensor.bytes.len());
            }
            prop_assert!(parse_dlib_shape(&stream()[..cut.index(stream().len())]).is_err());
        }
    }
}
