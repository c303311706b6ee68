//! dlib's networks and weights.
//!
//! Owns the readers of dlib's own files (`dat` for networks, `shape` for landmark predictors), the reader of the same
//! networks as ONNX, and the two kinds of network: `plain`, a chain of convolutions, and `resnet`. `form` names the
//! weights that a reader has found; `numbers` reads dlib's numbers. Knows nothing of ONNX's encoding, which
//! [`super::onnx`] reads.

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
