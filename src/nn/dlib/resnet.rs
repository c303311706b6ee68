//! dlib's residual networks: the face descriptor of 128 numbers, and the age network.
//!
//! King, "High Quality Face Recognition with Deep Metric Learning" (2017), and the networks in dlib's examples: a stem
//! of 7x7, blocks of two 3x3 convolutions, the mean over the image, one linear layer. Three things differ from
//! torchvision: an affine layer replaces batch norm; a block that halves the image does so without padding, and its
//! shortcut is an average pool; where the block and its shortcut differ in size, the smaller is padded with zeros
//! behind its last channel, row and column.
//!
//! Parameters: `conv1`, `affine1`, `blocks.{i}.conv1`, `.affine1`, `.conv2`, `.affine2`, `fc`. These networks are not
//! trained here, so the affine layers are folded into the convolutions when they are loaded.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor};

use crate::nn::{
    Device, NnError, Normalisation, TensorData,
    inference::infer_squares,
    network::{CheckedTensors, channels_last},
};

/// The means that dlib subtracts from red, green and blue of 0..255 before it divides by 256.
pub(super) const DLIB_MEANS: [f32; 3] = [122.782, 117.001, 104.298];

/// The mean of RGB in 0..1 that dlib's networks expect.
pub const DLIB_MEAN: [f32; 3] = [DLIB_MEANS[0] / 255.0, DLIB_MEANS[1] / 255.0, DLIB_MEANS[2] / 255.0];

/// The standard deviation of RGB in 0..1 that is equivalent to dlib's division by 256.
pub const DLIB_STD: [f32; 3] = [256.0 / 255.0; 3];

/// The facts that determine the shape of a network of this kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DlibResNetConfig {
    /// The side of the images, in pixels.
    pub side_px: u32,
    /// The number of channels behind the stem.
    pub stem_width: u32,
    /// The blocks in order, behind the stem.
    pub blocks: Vec<DlibBlock>,
    /// The number of outputs of the last layer.
    pub n_outputs: u32,
    /// Whether the last layer has a bias.
    pub fc_bias: bool,
}

/// One residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DlibBlock {
    /// The number of its channels.
    pub width: u32,
    /// Whether it halves the image.
    pub down: bool,
}

impl DlibResNetConfig {
    /// The face descriptor: 29 convolutions, 150 pixels, 128 numbers that are compared by Euclidean distance.
    #[must_use]
    pub fn face_descriptor() -> Self {
        let levels = [(32, false, 3), (64, true, 4), (128, true, 3), (256, true, 3), (256, true, 1)];
        Self { side_px: 150, stem_width: 32, blocks: blocks(&levels), n_outputs: 128, fc_bias: false }
    }

    /// The age network: 11 convolutions, 64 pixels, a logit for each of the ages 0 to 80.
    #[must_use]
    pub fn age() -> Self {
        let levels = [(64, false, 1), (128, true, 2), (256, true, 2)];
        Self { side_px: 64, stem_width: 64, blocks: blocks(&levels), n_outputs: 81, fc_bias: true }
    }

    fn shapes(&self) -> HashMap<String, Vec<i64>> {
        let mut shapes = HashMap::new();
        let mut n_in = i64::from(self.stem_width);
        conv_shapes(&mut shapes, "", 1, 3, n_in, 7);
        for (i, block) in self.blocks.iter().enumerate() {
            let (prefix, width) = (format!("blocks.{i}."), i64::from(block.width));
            conv_shapes(&mut shapes, &prefix, 1, n_in, width, 3);
            conv_shapes(&mut shapes, &prefix, 2, width, width, 3);
            n_in = width;
        }
        shapes.insert("fc.weight".to_owned(), vec![i64::from(self.n_outputs), n_in]);
        if self.fc_bias {
            shapes.insert("fc.bias".to_owned(), vec![i64::from(self.n_outputs)]);
        }
        shapes
    }
}

/// Expands levels of `(width, down, n_blocks)`; only a level's first block may halve the image.
fn blocks(levels: &[(u32, bool, usize)]) -> Vec<DlibBlock> {
    let level = |&(width, down, n): &(u32, bool, usize)| (0..n).map(move |i| DlibBlock { width, down: down && i == 0 });
    levels.iter().flat_map(level).collect()
}

/// Adds the shapes of a convolution and the affine layer behind it.
pub(super) fn conv_shapes(
    shapes: &mut HashMap<String, Vec<i64>>,
    prefix: &str,
    n: usize,
    n_in: i64,
    n_out: i64,
    size: i64,
) {
    shapes.insert(format!("{prefix}conv{n}.weight"), vec![n_out, n_in, size, size]);
    for vector in [format!("conv{n}.bias"), format!("affine{n}.weight"), format!("affine{n}.bias")] {
        shapes.insert(format!("{prefix}{vector}"), vec![n_out]);
    }
}

/// A convolution with its affine layer folded in.
#[derive(Debug)]
pub(super) struct FoldedConv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl FoldedConv {
    pub(super) fn load(
        loaded: &CheckedTensors<'_>,
        prefix: &str,
        n: usize,
        stride: i64,
        padding: i64,
    ) -> Result<Self, NnError> {
        let tensor = |name: &str| loaded.tensor(&format!("{prefix}{name}"));
        let (weight, bias) = (tensor(&format!("conv{n}.weight"))?, tensor(&format!("conv{n}.bias"))?);
        let (scale, offset) = (tensor(&format!("affine{n}.weight"))?, tensor(&format!("affine{n}.bias"))?);
        let weight = channels_last(&weight.f_mul(&scale.f_view([-1, 1, 1, 1])?)?);
        let bias = bias.f_mul(&scale)?.f_add(&offset)?;
        Ok(Self { weight, bias, stride, padding })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.f_conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)
    }
}

#[derive(Debug)]
struct Block {
    conv1: FoldedConv,
    conv2: FoldedConv,
    down: bool,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut y = self.conv2.forward(&self.conv1.forward(x)?.f_relu_()?)?;
        if !self.down {
            return y.f_add_(x)?.f_relu_();
        }
        let around = x.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?;
        // The pooled image is never the smaller one, and never has more channels.
        let (_, n_around, rows, columns) = around.size4()?;
        let (_, _, n_rows, n_columns) = y.size4()?;
        if (n_rows, n_columns) != (rows, columns) {
            y = y.f_constant_pad_nd([0, columns - n_columns, 0, rows - n_rows])?;
        }
        let _ = y.f_narrow(1, 0, n_around)?.f_add_(&around)?;
        y.f_relu_()
    }
}

/// A residual network of dlib's with fixed weights on one device. It may move between threads, but only one may use it
/// at a time.
#[derive(Debug)]
pub struct DlibResNet {
    side_px: u32,
    stem: FoldedConv,
    blocks: Vec<Block>,
    fc: Tensor,
    fc_bias: Option<Tensor>,
    normalisation: Normalisation,
}

impl DlibResNet {
    /// Loads a network from its tensors, which must be complete and no others.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that do not fit, [`NnError::OutOfMemory`].
    pub fn load(config: &DlibResNetConfig, tensors: &[TensorData], device: Device) -> Result<Self, NnError> {
        let loaded = CheckedTensors::check(&config.shapes(), tensors, device)?;
        tch::no_grad(|| {
            let block = |(i, block): (usize, &DlibBlock)| {
                let prefix = format!("blocks.{i}.");
                let (stride, padding) = if block.down { (2, 0) } else { (1, 1) };
                Ok(Block {
                    conv1: FoldedConv::load(&loaded, &prefix, 1, stride, padding)?,
                    conv2: FoldedConv::load(&loaded, &prefix, 2, 1, 1)?,
                    down: block.down,
                })
            };
            Ok(Self {
                side_px: config.side_px,
                stem: FoldedConv::load(&loaded, "", 1, 2, 0)?,
                blocks: config.blocks.iter().enumerate().map(block).collect::<Result<_, NnError>>()?,
                fc: loaded.tensor("fc.weight")?,
                fc_bias: config.fc_bias.then(|| loaded.tensor("fc.bias")).transpose()?,
                normalisation: Normalisation::new(DLIB_MEAN, DLIB_STD, device),
            })
        })
    }

    /// Runs the network on interleaved RGB squares of its side, up to the largest bucket; returns the last layer's
    /// outputs.
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
            let x = self.stem.forward(images)?.f_relu_()?;
            let mut x = x.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)?;
            for block in &self.blocks {
                x = block.forward(&x)?;
            }
            let pooled = x.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?;
            Ok(pooled.f_linear(&self.fc, self.fc_bias.as_ref())?)
        })
    }
}

/// Checks that these are images for a network of this side.
pub(super) fn check_images(images: &Tensor, side_px: u32) -> Result<(), NnError> {
    let (size, side) = (images.size(), i64::from(side_px));
    if size.len() == 4 && size[1..] == [3, side, side] && images.kind() == Kind::Float {
        return Ok(());
    }
    Err(NnError::Torch { detail: format!("images of shape {size:?}, expected [N, 3, {side}, {side}] of f32") })
}

#[cfg(test)]
mod tests;
