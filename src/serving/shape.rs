//! A version's tensors to the predictor of its alignment points.

use super::EngineError;
use crate::{
    nn::{Dtype, TensorData},
    vision::{Point, ShapeParts, ShapePredictor},
};

/// The predictor; none of no tensors.
///
/// # Errors
/// [`EngineError::WeightsMismatch`] naming what is missing, misshapen or out of range.
pub(super) fn shape_predictor(tensors: &[TensorData]) -> Result<Option<ShapePredictor>, EngineError> {
    if tensors.is_empty() {
        return Ok(None);
    }
    let parts = parts(tensors).map_err(EngineError::WeightsMismatch)?;
    ShapePredictor::new(parts).map(Some).map_err(|why| EngineError::WeightsMismatch(format!("shape: {why}")))
}

fn parts(tensors: &[TensorData]) -> Result<ShapeParts, String> {
    let (shape, initial) = floats(tensors, "shape.initial")?;
    if shape != [5, 2] {
        return Err(format!("shape.initial has shape {shape:?}, not [5, 2]"));
    }
    let (split_shape, thresholds) = floats(tensors, "shape.thresholds")?;
    let &[_, n_trees, n_splits] = split_shape else {
        return Err(format!("shape.thresholds has shape {split_shape:?}, not three dimensions"));
    };
    let (anchor_shape, anchors) = indices(tensors, "shape.anchors")?;
    let &[_, n_pixels] = anchor_shape else {
        return Err(format!("shape.anchors has shape {anchor_shape:?}, not two dimensions"));
    };
    let (_, splits) = indices(tensors, "shape.splits")?;
    let (leaf_shape, leaves) = floats(tensors, "shape.leaves")?;
    if leaf_shape.last() != Some(&10) {
        return Err(format!("shape.leaves has shape {leaf_shape:?}, not ten numbers last"));
    }
    let (_, deltas) = floats(tensors, "shape.deltas")?;
    let size = |n: i64| usize::try_from(n).unwrap_or(0);
    Ok(ShapeParts {
        initial: five(&initial),
        anchors,
        deltas: deltas.as_chunks::<2>().0.iter().map(|&[x, y]| Point { x, y }).collect(),
        n_pixels: size(n_pixels),
        splits: splits.as_chunks::<2>().0.to_vec(),
        thresholds,
        leaves: leaves.as_chunks::<10>().0.iter().map(|leaf| five(leaf)).collect(),
        n_trees: size(n_trees),
        n_splits: size(n_splits),
    })
}

/// Five points of at least ten numbers.
fn five(numbers: &[f32]) -> [Point; 5] {
    std::array::from_fn(|i| Point { x: numbers[2 * i], y: numbers[2 * i + 1] })
}

fn tensor<'a>(tensors: &'a [TensorData], name: &str, dtype: Dtype) -> Result<&'a TensorData, String> {
    let tensor = tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| format!("{name} is missing"))?;
    let width = if dtype == Dtype::I64 { 8 } else { 4 };
    let n_bytes = tensor.shape.iter().map(|d| d.unsigned_abs()).product::<u64>() * width;
    if tensor.dtype == dtype && n_bytes == tensor.bytes.len() as u64 {
        Ok(tensor)
    } else {
        Err(format!("{name} does not hold what its shape says"))
    }
}

fn floats<'a>(tensors: &'a [TensorData], name: &str) -> Result<(&'a [i64], Vec<f32>), String> {
    let tensor = tensor(tensors, name, Dtype::F32)?;
    Ok((&tensor.shape, tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
}

fn indices<'a>(tensors: &'a [TensorData], name: &str) -> Result<(&'a [i64], Vec<usize>), String> {
    let tensor = tensor(tensors, name, Dtype::I64)?;
    let index =
        |bytes: &[u8; 8]| usize::try_from(i64::from_le_bytes(*bytes)).map_err(|_| format!("{name} is below zero"));
    Ok((&tensor.shape, tensor.bytes.as_chunks::<8>().0.iter().map(index).collect::<Result<_, _>>()?))
}
