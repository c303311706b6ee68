//! Reads and writes weights files.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::Path,
};

use bytes::Bytes;

use safetensors::{SafeTensors, tensor::TensorView};

use super::{
    Dtype, NnError, TensorData, dlib::DlibKind, parse_dlib_dat, parse_dlib_onnx, parse_dlib_shape, parse_state_dict,
};
use crate::digest::Digest;

/// The largest weights file that is read, in bytes: five times the largest network supported.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Reads a weights file; see [`parse_weights`].
///
/// # Errors
/// [`NnError::WeightsUnreadable`] naming the file, and the tensor if one is at fault.
pub fn read_weights(path: &Path) -> Result<Vec<TensorData>, NnError> {
    parse_weights(path, &read_file(path)?)
}

/// Reads a weights file's bytes.
///
/// # Errors
/// [`NnError::WeightsUnreadable`] if it is no regular file or too large.
pub fn read_file(path: &Path) -> Result<Bytes, NnError> {
    let unreadable = |detail: String| NnError::WeightsUnreadable { path: path.to_owned(), detail };
    // Checked before opening: opening a pipe would block until it has a writer.
    let about = fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
    if !about.is_file() {
        return Err(unreadable("it is not a file".to_owned()));
    }
    if about.len() > MAX_FILE_BYTES {
        return Err(unreadable(format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", about.len())));
    }
    fs::read(path).map(Bytes::from).map_err(|e| unreadable(e.to_string()))
}

/// Parses a weights file by its name's ending. `.safetensors`; `.pth` and `.pt`: a PyTorch state dict; `.dat`: dlib's
/// face network or five-point shape predictor, distinguished by their first bytes; `.onnx`: a network of dlib's kinds
/// in that format.
///
/// # Errors
/// [`NnError::WeightsUnreadable`] naming the file, and the tensor if one is invalid.
pub fn parse_weights(path: &Path, bytes: &Bytes) -> Result<Vec<TensorData>, NnError> {
    let tensors = match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => parse_safetensors(bytes),
        Some("pth" | "pt") => parse_state_dict(Cursor::new(bytes)),
        Some("dat") => parse_dat(bytes),
        Some("onnx") => parse_dlib_onnx(bytes),
        _ => Err("the name must end in .safetensors, .pth, .pt, .dat or .onnx".to_owned()),
    };
    tensors.map_err(|detail| NnError::WeightsUnreadable { path: path.to_owned(), detail })
}

fn parse_dat(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    match DlibKind::of(bytes) {
        Some(DlibKind::Network) => parse_dlib_dat(bytes),
        Some(DlibKind::Shape) => parse_dlib_shape(bytes),
        None => Err("it begins neither as a network nor as a shape predictor that dlib wrote".to_owned()),
    }
}

/// Parses a safetensors file. The tensors are slices of `bytes`; all must be f32 or i64.
///
/// # Errors
/// What is wrong with the bytes.
pub fn parse_safetensors(bytes: &Bytes) -> Result<Vec<TensorData>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::I64 => Dtype::I64,
            other => return Err(format!("tensor {name} is {other:?}; only F32 and I64 are read")),
        };
        let shape = view.shape().iter().map(|d| i64::try_from(*d)).collect::<Result<_, _>>();
        tensors.push(TensorData {
            name: name.to_owned(),
            shape: shape.map_err(|e| format!("tensor {name}: {e}"))?,
            dtype,
            bytes: bytes.slice_ref(view.data()),
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Writes a safetensors file, syncs it and returns its digest.
///
/// # Errors
/// [`NnError::WeightsUnreadable`] naming the file.
pub fn write_safetensors(path: &Path, tensors: &[TensorData]) -> Result<Digest, NnError> {
    let unwritable = |detail: String| NnError::WeightsUnreadable { path: path.to_owned(), detail };
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let dtype = match tensor.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::I64 => safetensors::Dtype::I64,
        };
        let shape = tensor.shape.iter().map(|d| usize::try_from(*d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|e| unwritable(format!("tensor {}: {e}", tensor.name)))?;
        let view = TensorView::new(dtype, shape, &tensor.bytes).map_err(|e| unwritable(e.to_string()))?;
        views.push((tensor.name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| unwritable(e.to_string()))?;
    let written = File::create(path).and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
    written.map_err(|e| unwritable(e.to_string()))?;
    Ok(Digest::of(&bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensors() -> Vec<TensorData> {
        let tensor = |name: &str, shape: Vec<i64>, dtype, width: usize| {
            let n = shape.iter().product::<i64>() as usize;
            TensorData { name: name.to_owned(), shape, dtype, bytes: (0..n * width).map(|i| i as u8).collect() }
        };
        vec![tensor("a.weight", vec![2, 3], Dtype::F32, 4), tensor("b", vec![], Dtype::I64, 8)]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let digest = write_safetensors(&path, &tensors()).unwrap();
        let written = Bytes::from(fs::read(&path).unwrap());
        let read = parse_safetensors(&written).unwrap();
        assert_eq!(read, tensors());
        assert_eq!(digest, Digest::of(&written));
        assert!(written.as_ptr_range().contains(&read[0].bytes.as_ptr()), "a slice of the file");
    }

    #[test]
    fn a_file_of_dlibs_is_read_as_what_it_begins_as() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.dat");
        let detail = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_weights(&path).unwrap_err().to_string()
        };
        assert!(detail(b"\x01\x01\x01\x0closs_metric_").contains("a layer's format"));
        assert!(detail(b"\x01\x01\x81\x0a\x81\x01").contains("average shape"));
        assert!(detail(b"PK").contains("neither as a network nor as a shape predictor"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_errors(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.safetensors");
            write_safetensors(&path, &tensors()).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let bytes = Bytes::from(bytes);
            let _ = parse_safetensors(&bytes);
            prop_assert!(parse_safetensors(&bytes.slice(..cut.index(bytes.len()))).is_err());
        }
    }
}
