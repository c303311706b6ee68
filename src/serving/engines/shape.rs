//! Builds the predictor of alignment points from a version's tensors.

use crate::{
    nn::{Dtype, SHAPE_PREFIX, TensorData},
    serving::EngineError,
    vision::{Point, ShapeParts, ShapePredictor, points},
};

/// Builds the predictor from these tensors. Returns `None` when no name begins with `shape.`.
///
/// # Errors
/// [`EngineError::WeightsMismatch`] naming what is missing, misshapen or out of range.
pub(super) fn shape_predictor(tensors: &[TensorData]) -> Result<Option<ShapePredictor>, EngineError> {
    let tensors: Vec<&TensorData> = tensors.iter().filter(|tensor| tensor.name.starts_with(SHAPE_PREFIX)).collect();
    if tensors.is_empty() {
        return Ok(None);
    }
    let predictor = parts(&tensors).and_then(|parts| {
        ShapePredictor::new(parts).map_err(|why| format!("the shape predictor's tensors do not fit together: {why}"))
    });
    predictor.map(Some).map_err(EngineError::WeightsMismatch)
}

fn parts(tensors: &[&TensorData]) -> Result<ShapeParts, String> {
    // The shapes of these two give all counts; the other tensors must agree.
    let [n_cascades, n_trees, n_splits] = dimensions(tensors, "shape.thresholds")?;
    let [_, n_pixels] = dimensions(tensors, "shape.anchors")?;
    let initial = floats(tensors, "shape.initial", &[5, 2])?;
    let thresholds = floats(tensors, "shape.thresholds", &[n_cascades, n_trees, n_splits])?;
    let leaves = floats(tensors, "shape.leaves", &[n_cascades, n_trees, n_splits + 1, 10])?;
    let anchors = indices(tensors, "shape.anchors", &[n_cascades, n_pixels])?;
    let deltas = floats(tensors, "shape.deltas", &[n_cascades, n_pixels, 2])?;
    let splits = indices(tensors, "shape.splits", &[n_cascades, n_trees, n_splits, 2])?;
    Ok(ShapeParts {
        initial: points(&initial).unwrap_or_default(),
        anchors,
        deltas: deltas.as_chunks::<2>().0.iter().map(|&[x, y]| Point { x, y }).collect(),
        n_pixels,
        splits: splits.as_chunks::<2>().0.to_vec(),
        thresholds,
        leaves: leaves.chunks_exact(10).filter_map(points).collect(),
        n_trees,
        n_splits,
    })
}

fn tensor<'a>(tensors: &[&'a TensorData], name: &str) -> Result<&'a TensorData, String> {
    tensors.iter().find(|tensor| tensor.name == name).copied().ok_or_else(|| format!("{name} is missing"))
}

fn dimensions<const N: usize>(tensors: &[&TensorData], name: &str) -> Result<[usize; N], String> {
    let shape = &tensor(tensors, name)?.shape;
    let misshapen = || format!("{name} has the shape {shape:?}, expected {N} dimensions of 1 or more");
    let dimensions = <&[i64; N]>::try_from(shape.as_slice()).map_err(|_| misshapen())?;
    // Each fits 31 bits, so adding one cannot overflow.
    let is_size = |d: &i64| (1..=i64::from(i32::MAX)).contains(d);
    if dimensions.iter().all(is_size) { Ok(dimensions.map(|d| d as usize)) } else { Err(misshapen()) }
}

/// Returns the bytes of a tensor after checking its dtype and shape.
fn bytes<'a>(tensors: &[&'a TensorData], name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8], String> {
    let tensor = tensor(tensors, name)?;
    if tensor.dtype != dtype || !tensor.shape.iter().copied().eq(shape.iter().map(|&d| d as i64)) {
        let (got, got_shape) = (tensor.dtype, &tensor.shape);
        return Err(format!("{name} is {got:?} of the shape {got_shape:?}, expected {dtype:?} of {shape:?}"));
    }
    let width = match dtype {
        Dtype::F32 => 4,
        Dtype::I64 => 8,
    };
    let n_bytes = shape.iter().try_fold(width, |n: usize, d| n.checked_mul(*d));
    if n_bytes == Some(tensor.bytes.len()) {
        Ok(&tensor.bytes)
    } else {
        Err(format!("{name} has {} bytes, which are not {shape:?} of {dtype:?}", tensor.bytes.len()))
    }
}

fn floats(tensors: &[&TensorData], name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let bytes = bytes(tensors, name, Dtype::F32, shape)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn indices(tensors: &[&TensorData], name: &str, shape: &[usize]) -> Result<Vec<usize>, String> {
    let index = |bytes: &[u8; 8]| {
        let n = i64::from_le_bytes(*bytes);
        usize::try_from(n).map_err(|_| format!("{name} holds {n}, which is no index"))
    };
    bytes(tensors, name, Dtype::I64, shape)?.as_chunks::<8>().0.iter().map(index).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        nn::read_weights,
        vision::{BoundingBox, DecodeLimits, DecodeSize, decode},
    };

    /// Made by `tests/fixtures/dlib_shape.py` with dlib 20.0.1.
    const GOLDEN: &str = include_str!("../../../tests/fixtures/dlib_shape.json");
    const PORTRAIT: &[u8] = include_bytes!("../../../tests/fixtures/portrait.jpg");

    fn integers(name: &str, shape: &[i64], values: &[i64]) -> TensorData {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorData { name: name.to_owned(), shape: shape.to_vec(), dtype: Dtype::I64, bytes }
    }

    /// Creates a tensor of ascending numbers.
    fn reals(name: &str, shape: &[i64]) -> TensorData {
        let n: i64 = shape.iter().product();
        let bytes = (0..n).flat_map(|v| (v as f32).to_le_bytes()).collect();
        TensorData { name: name.to_owned(), shape: shape.to_vec(), dtype: Dtype::F32, bytes }
    }

    fn tiny() -> Vec<TensorData> {
        vec![
            reals("pnet.bias", &[3]),
            integers("shape.anchors", &[2, 2], &[0, 4, 1, 2]),
            reals("shape.deltas", &[2, 2, 2]),
            reals("shape.initial", &[5, 2]),
            reals("shape.leaves", &[2, 3, 2, 10]),
            integers("shape.splits", &[2, 3, 1, 2], &[0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0]),
            reals("shape.thresholds", &[2, 3, 1]),
        ]
    }

    #[test]
    fn tensors_become_parts() {
        let tensors = tiny();
        let parts = parts(&tensors.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((parts.n_pixels, parts.n_trees, parts.n_splits), (2, 3, 1));
        assert_eq!(parts.initial[4], Point { x: 8.0, y: 9.0 });
        assert_eq!((parts.anchors[1], parts.deltas[3]), (4, Point { x: 6.0, y: 7.0 }));
        assert_eq!((parts.splits[1], parts.thresholds[5]), ([1, 0], 5.0));
        assert_eq!(parts.leaves[11][4], Point { x: 118.0, y: 119.0 });
        assert!(shape_predictor(&tensors).unwrap().is_some());
        assert!(shape_predictor(&tensors[..1]).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |at: usize, other: Option<TensorData>| {
            let mut tensors = tiny();
            tensors.splice(at..=at, other);
            match shape_predictor(&tensors) {
                Err(EngineError::WeightsMismatch(words)) => words,
                other => panic!("{at}: {other:?}"),
            }
        };
        for (at, tensor) in tiny().into_iter().enumerate().skip(1) {
            assert!(refused(at, None).contains(&format!("{} is missing", tensor.name)));
            let mut short = tensor.clone();
            short.bytes.truncate(short.bytes.len() - 1);
            assert!(refused(at, Some(short)).contains(&format!("{} has ", tensor.name)));
            let mut other = tensor.clone();
            other.shape.push(1);
            assert!(refused(at, Some(other)).contains(&tensor.name));
        }
        assert!(refused(2, Some(reals("shape.deltas", &[2, 1, 2]))).contains("[2, 1, 2], expected F32 of [2, 2, 2]"));
        assert!(refused(1, Some(reals("shape.anchors", &[2, 2]))).contains("expected I64"));
        assert!(refused(1, Some(integers("shape.anchors", &[2, 2], &[0, 4, 1, -2]))).contains("holds -2"));
        assert!(refused(1, Some(integers("shape.anchors", &[2, 2], &[0, 4, 1, 5]))).contains("landmark 5 of 5"));
        for wrong in [[0, 3, 1], [-2, 3, 1], [2, i64::MAX, i64::MAX]] {
            let thresholds =
                TensorData { shape: wrong.to_vec(), bytes: Vec::new().into(), ..reals("shape.thresholds", &[1]) };
            assert!(refused(6, Some(thresholds)).contains("shape.thresholds has the shape"));
        }
    }

    #[test]
    fn the_points_are_those_of_dlib() {
        let Some(folder) = std::env::var_os("VISAGE_WEIGHTS") else {
            eprintln!("skipped: VISAGE_WEIGHTS names no folder of published weights");
            return;
        };
        let path = PathBuf::from(folder).join("mtcnn/shape_predictor_5_face_landmarks.dat");
        let predictor = shape_predictor(&read_weights(&path).unwrap()).unwrap().unwrap();
        let photo = decode(PORTRAIT, &DecodeLimits::default(), DecodeSize::Full).unwrap();
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        let faces = golden["faces"].as_array().unwrap();
        assert_eq!(faces.len(), 2);
        for face in faces {
            let [left, top, right, bottom] = serde_json::from_value::<[f32; 4]>(face["bounds"].clone()).unwrap();
            let expected: [[f32; 2]; 5] = serde_json::from_value(face["points"].clone()).unwrap();
            let found = predictor.place(&photo, &BoundingBox { left, top, right, bottom });
            for (point, [x, y]) in found.iter().zip(expected) {
                // dlib rounds to whole pixels, and decodes the photo slightly differently.
                let (dx, dy) = ((point.x - x).abs(), (point.y - y).abs());
                assert!(dx < 0.75 && dy < 0.75, "{found:?}, expected {expected:?}");
            }
        }
    }
}
