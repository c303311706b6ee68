//! Networks and weight readers.
//!
//! One file a network. Parameter names equal PyTorch's, so that published weights fit. Knows no store and not where
//! pixels come from; its shared types ([`NetworkSpec`], [`TensorData`]) are free of `tch`.

mod age_gender;
mod device;
mod dlib;
mod error;
mod golden;
mod head;
mod inference;
mod mtcnn;
mod network;
mod onnx;
mod protobuf;
mod published;
mod resnet;
mod state_dict;
mod weights;

use bytes::Bytes;

pub use age_gender::{AGE_GENDER_SIDE_PX, AgeGender, AgeGenderOutput};
pub use device::{Device, set_num_threads};
pub use dlib::{
    DLIB_MEAN, DLIB_STD, DlibBlock, DlibPlainConfig, DlibPlainNet, DlibResNet, DlibResNetConfig, SHAPE_PREFIX,
    parse_dlib_dat, parse_dlib_onnx, parse_dlib_shape,
};
pub use error::NnError;
pub(crate) use error::is_out_of_memory;
pub use golden::{GOLDEN_SEED, Golden, golden_input};
pub use head::{EMBEDDING_16, EMBEDDING_512, HeadOutput, embedding_layers};
pub use inference::{BUCKETS, InferenceNetwork, Normalisation, RawOutput};
pub use mtcnn::{CanvasOutput, CropOutput, Mtcnn};
pub use network::{IMAGENET_MEAN, IMAGENET_STD, Network, ParameterGroup, channels_last};
pub use published::{PublishedNetwork, WeightsFile};
pub use state_dict::parse_state_dict;
pub use weights::{parse_safetensors, parse_weights, read_file, read_weights, write_safetensors};

use crate::mapped;

/// The minimum of a photo's shorter side, in pixels; smaller photos have too little detail to be read.
pub const MIN_SIDE_PX: u32 = 16;

/// The architecture of a network's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 11 M parameters, 512 features.
    ResNet18,
    /// 21 M parameters, 512 features.
    ResNet34,
    /// 24 M parameters, 2048 features.
    ResNet50,
}

/// The meaning of a head's raw output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// One number.
    Regression,
    /// One logit per label.
    Classification {
        /// At least 2.
        n_labels: usize,
    },
}

impl HeadKind {
    /// Returns the number of outputs of the head's linear layer.
    #[must_use]
    pub fn n_outputs(self) -> usize {
        match self {
            Self::Regression => 1,
            Self::Classification { n_labels } => n_labels,
        }
    }
}

/// The facts that determine a network's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    /// The body.
    pub architecture: Architecture,
    /// Each head's name and kind, in the order of the outputs.
    pub heads: Vec<(String, HeadKind)>,
    /// The dropout rate in training, 0 to below 1.
    pub dropout: f64,
}

/// A network that weights can be loaded into.
#[derive(Clone, Debug, PartialEq)]
pub enum NetworkKind {
    /// A residual network with heads, of the kind this project trains.
    Residual {
        /// The network's shape.
        spec: NetworkSpec,
        /// The mean of RGB in 0..1 for normalising its input.
        mean: [f32; 3],
        /// The standard deviation, above 0.
        std: [f32; 3],
    },
    /// A network published by others.
    Published(PublishedNetwork),
}

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float, little-endian.
    F32,
    /// 64-bit signed integer, little-endian.
    I64,
}

/// A tensor as bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// PyTorch's parameter name.
    pub name: String,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<i64>,
    /// Element type.
    pub dtype: Dtype,
    /// Contiguous, little-endian. Clones share the bytes.
    pub bytes: Bytes,
}

impl TensorData {
    /// Returns false if the bytes lie in a mapped file that was truncated; what was read of them is then invalid.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        mapped::is_intact(&self.bytes)
    }
}
