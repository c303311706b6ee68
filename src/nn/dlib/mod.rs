//! Networks and weights that come from dlib.
//!
//! Owns the readers of dlib's own files (`dat` for networks, `shape` for landmark predictors), the reader of the same
//! networks as ONNX, and the two kinds of network that they describe: `plain`, a row of convolutions, and `resnet`.
//! `form` names what a reader has found in the networks' own terms; `numbers` reads dlib's numbers. Knows nothing of
//! how ONNX is written: [`super::onnx`] reads that.

mod dat;
mod form;
mod numbers;
mod onnx;
mod plain;
mod resnet;
mod shape;

pub use dat::parse_dlib_dat;
pub(super) use numbers::DlibKind;
pub use onnx::parse_dlib_onnx;
pub use plain::{DlibPlainConfig, DlibPlainNet};
pub use resnet::{DLIB_MEAN, DLIB_STD, DlibBlock, DlibResNet, DlibResNetConfig};
pub use shape::{SHAPE_PREFIX, parse_dlib_shape};
