//! dlib's plain networks: the gender network.
//!
//! Blocks of two 3x3 convolutions, each with an affine layer and a relu, and an average pool behind each block; then
//! two linear layers, each behind a factor that replaces the dropout of training. Parameters: `blocks.{i}.conv1`,
//! `.affine1`, `.conv2`, `.affine2`, `scale1`, `fc1`, `scale2`, `fc2`. Affine layers and factors are folded into the
//! weights when they are loaded.

use std::collections::HashMap;

use tch::Tensor;

use super::resnet::{DLIB_MEAN, DLIB_STD, FoldedConv, check_images, conv_shapes};
use crate::nn::{Device, NnError, Normalisation, TensorData, inference::infer_squares, network::CheckedTensors};

/// The facts that determine the shape of a network of this kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DlibPlainConfig {
    /// The side of the images, in pixels.
    pub side_px: u32,
    /// The channels of each block; each halves the image.
    pub widths: Vec<u32>,
    /// The number of units of the first linear layer.
    pub n_hidden: u32,
    /// The number of outputs of the last layer.
    pub n_outputs: u32,
}

impl DlibPlainConfig {
    /// The gender network: 32 pixels, a logit for female and one for male, in this order.
    #[must_use]
    pub fn gender() -> Self {
        Self { side_px: 32, widths: vec![32, 64], n_hidden: 16, n_outputs: 2 }
    }

    fn shapes(&self) -> HashMap<String, Vec<i64>> {
        let mut shapes = HashMap::new();
        let (mut n_in, mut side) = (3, i64::from(self.side_px));
        for (i, width) in self.widths.iter().enumerate() {
            let (prefix, width) = (format!("blocks.{i}."), i64::from(*width));
            conv_shapes(&mut shapes, &prefix, 1, n_in, width, 3);
            conv_shapes(&mut shapes, &prefix, 2, width, width, 3);
            (n_in, side) = (width, side / 2);
        }
        let (n_hidden, n_outputs) = (i64::from(self.n_hidden), i64::from(self.n_outputs));
        for (n, n_in, n_out) in [(1, n_in * side * side, n_hidden), (2, n_hidden, n_outputs)] {
            shapes.insert(format!("scale{n}"), vec![1]);
            shapes.insert(format!("fc{n}.weight"), vec![n_out, n_in]);
            shapes.insert(format!("fc{n}.bias"), vec![n_out]);
        }
        shapes
    }
}

/// A linear layer with the factor before it folded in.
#[derive(Debug)]
struct FoldedLinear {
    weight: Tensor,
    bias: Tensor,
}

impl FoldedLinear {
    fn load(loaded: &CheckedTensors<'_>, n: usize) -> Result<Self, NnError> {
        let weight = loaded.tensor(&format!("fc{n}.weight"))?.f_mul(&loaded.tensor(&format!("scale{n}"))?)?;
        Ok(Self { weight, bias: loaded.tensor(&format!("fc{n}.bias"))? })
    }
}

/// A plain network of dlib's with fixed weights on one device. It may move between threads, but only one may use it at
/// a time.
#[derive(Debug)]
pub struct DlibPlainNet {
    side_px: u32,
    blocks: Vec<(FoldedConv, FoldedConv)>,
    fc1: FoldedLinear,
    fc2: FoldedLinear,
    normalisation: Normalisation,
}

impl DlibPlainNet {
    /// Loads a network from its tensors, which must be complete and no others.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that do not fit, [`NnError::OutOfMemory`].
    pub fn load(config: &DlibPlainConfig, tensors: &[TensorData], device: Device) -> Result<Self, NnError> {
        let loaded = CheckedTensors::check(&config.shapes(), tensors, device)?;
        tch::no_grad(|| {
            let block = |i: usize| {
                let prefix = format!("blocks.{i}.");
                Ok((FoldedConv::load(&loaded, &prefix, 1, 1, 1)?, FoldedConv::load(&loaded, &prefix, 2, 1, 1)?))
            };
            Ok(Self {
                side_px: config.side_px,
                blocks: (0..config.widths.len()).map(block).collect::<Result<_, NnError>>()?,
                fc1: FoldedLinear::load(&loaded, 1)?,
                fc2: FoldedLinear::load(&loaded, 2)?,
                normalisation: Normalisation::new(DLIB_MEAN, DLIB_STD, device),
            })
        })
    }

    /// Runs the network on interleaved RGB squares of its side, up to the largest bucket; returns logits.
    ///
    /// # Errors
    /// [`NnError::OutOfMemory`], or [`NnError::Torch`] for pixels of another size.
    pub fn infer(&self, rgb: &[&[u8]]) -> Result<Vec<Vec<f32>>, NnError> {
        infer_squares(rgb, self.side_px, &self.normalisation, |images| self.forward(images))
    }

    /// Maps `[N, 3, side, side]`, normalised and preferably channels-last, to `[N, outputs]`.
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor, NnError> {
        check_images(images, self.side_px)?;
        tch::no_grad(|| {
            let mut x = images.shallow_clone();
            for (conv1, conv2) in &self.blocks {
                let y = conv2.forward(&conv1.forward(&x)?.f_relu_()?)?.f_relu_()?;
                x = y.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?;
            }
            // Channels first, whatever the layout in memory.
            let hidden = x.f_flatten(1, -1)?.f_linear(&self.fc1.weight, Some(&self.fc1.bias))?.f_relu_()?;
            Ok(hidden.f_linear(&self.fc2.weight, Some(&self.fc2.bias))?)
        })
    }
}
