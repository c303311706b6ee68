//! The three networks that find faces, after Zhang et al. 2016, with the parameter names of facenet-pytorch's files.
//!
//! They run one after another; `vision::detect` processes the boxes in between.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor};

use super::{Device, NnError, TensorData, inference::rows, network::CheckedTensors};

/// The maximum number of crops in one run of the second and third network; more are split.
const MAX_CROPS: usize = 64;

/// Crops are padded to one of these numbers, because kernels are cached by shape.
const CROP_BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, MAX_CROPS];

/// A layer's name and its weight's shape, whose first dimension is also the bias's.
type Layer = (&'static str, &'static [i64]);

/// The layers of each network.
const LAYERS: [(&str, &[Layer]); 3] = [
    (
        "pnet",
        &[
            ("conv1", &[10, 3, 3, 3]),
            ("prelu1", &[10]),
            ("conv2", &[16, 10, 3, 3]),
            ("prelu2", &[16]),
            ("conv3", &[32, 16, 3, 3]),
            ("prelu3", &[32]),
            ("conv4_1", &[2, 32, 1, 1]),
            ("conv4_2", &[4, 32, 1, 1]),
        ],
    ),
    (
        "rnet",
        &[
            ("conv1", &[28, 3, 3, 3]),
            ("prelu1", &[28]),
            ("conv2", &[48, 28, 3, 3]),
            ("prelu2", &[48]),
            ("conv3", &[64, 48, 2, 2]),
            ("prelu3", &[64]),
            ("dense4", &[128, 576]),
            ("prelu4", &[128]),
            ("dense5_1", &[2, 128]),
            ("dense5_2", &[4, 128]),
        ],
    ),
    (
        "onet",
        &[
            ("conv1", &[32, 3, 3, 3]),
            ("prelu1", &[32]),
            ("conv2", &[64, 32, 3, 3]),
            ("prelu2", &[64]),
            ("conv3", &[64, 64, 3, 3]),
            ("prelu3", &[64]),
            ("conv4", &[128, 64, 2, 2]),
            ("prelu4", &[128]),
            ("dense5", &[256, 1152]),
            ("prelu5", &[256]),
            ("dense6_1", &[2, 256]),
            ("dense6_2", &[4, 256]),
            ("dense6_3", &[10, 256]),
        ],
    ),
];

/// The first network's output for a canvas: a map of cells, two pixels apart.
#[derive(Clone, Debug, PartialEq)]
pub struct CanvasOutput {
    /// The number of cells in a row.
    pub width: usize,
    /// The probability that a cell shows a face, row by row.
    pub scores: Vec<f32>,
    /// Four planes: offsets of the box's left, top, right and bottom, as fractions of its sides.
    pub offsets: Vec<f32>,
}

/// The second or third network's output for a crop.
#[derive(Clone, Debug, PartialEq)]
pub struct CropOutput {
    /// The probability that the crop is a face.
    pub score: f32,
    /// Offsets of the box's left, top, right and bottom, as fractions of its sides.
    pub offsets: [f32; 4],
    /// From the third network: five x, then five y, as fractions of the box's sides; from the second: zeros.
    pub landmarks: [f32; 10],
}

/// The three networks with fixed weights on one device.
#[derive(Debug)]
pub struct Mtcnn {
    parameters: HashMap<String, Tensor>,
    device: tch::Device,
}

impl Mtcnn {
    /// Loads the tensors of `pnet.*`, `rnet.*` and `onet.*`.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that are missing, unexpected or of another shape.
    pub fn load(tensors: &[TensorData], device: Device) -> Result<Self, NnError> {
        let mut shapes = HashMap::new();
        for (network, layers) in LAYERS {
            for (layer, shape) in layers {
                shapes.insert(format!("{network}.{layer}.weight"), shape.to_vec());
                if !layer.starts_with("prelu") {
                    shapes.insert(format!("{network}.{layer}.bias"), shape[..1].to_vec());
                }
            }
        }
        let loaded = CheckedTensors::check(&shapes, tensors, device)?;
        let parameters = shapes.into_keys().map(|name| loaded.tensor(&name).map(|tensor| (name, tensor)));
        Ok(Self { parameters: parameters.collect::<Result<_, NnError>>()?, device: device.tch() })
    }

    /// Runs the first network on a canvas: rows of interleaved RGB, scaled to `(value - 127.5) / 128`.
    ///
    /// # Errors
    /// [`NnError::Torch`] for a canvas of another size, [`NnError::OutOfMemory`].
    pub fn propose(&self, canvas: &[f32], width: u32, height: u32) -> Result<CanvasOutput, NnError> {
        let images = self.images(canvas, 1, width, height)?;
        tch::no_grad(|| {
            let x = self.convolve(&images, "pnet", 1)?.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.convolve(&x, "pnet", 2)?;
            let x = self.convolve(&x, "pnet", 3)?;
            let scores = self.conv(&x, "pnet.conv4_1")?.f_softmax(1, Kind::Float)?.f_select(1, 1)?;
            let offsets = self.conv(&x, "pnet.conv4_2")?;
            let width = usize::try_from(scores.size().last().copied().unwrap_or(0)).unwrap_or(0);
            Ok(CanvasOutput { width, scores: rows(&scores)?.concat(), offsets: rows(&offsets)?.concat() })
        })
    }

    /// Runs the second network on consecutive crops of 24 pixels, scaled in the same way.
    ///
    /// # Errors
    /// As [`Mtcnn::propose`].
    pub fn refine(&self, crops: &[f32]) -> Result<Vec<CropOutput>, NnError> {
        self.in_buckets(crops, 24, |images| {
            let x = self.convolve(images, "rnet", 1)?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.convolve(&x, "rnet", 2)?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.dense(&flat(&self.convolve(&x, "rnet", 3)?)?, "rnet.dense4")?;
            let x = x.f_prelu(self.weight("rnet.prelu4"))?;
            let scores = self.dense(&x, "rnet.dense5_1")?.f_softmax(1, Kind::Float)?;
            Ok((scores, self.dense(&x, "rnet.dense5_2")?, None))
        })
    }

    /// Runs the third network on consecutive crops of 48 pixels, scaled in the same way.
    ///
    /// # Errors
    /// As [`Mtcnn::propose`].
    pub fn decide(&self, crops: &[f32]) -> Result<Vec<CropOutput>, NnError> {
        self.in_buckets(crops, 48, |images| {
            let x = self.convolve(images, "onet", 1)?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.convolve(&x, "onet", 2)?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.convolve(&x, "onet", 3)?.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], true)?;
            let x = self.dense(&flat(&self.convolve(&x, "onet", 4)?)?, "onet.dense5")?;
            let x = x.f_prelu(self.weight("onet.prelu5"))?;
            let scores = self.dense(&x, "onet.dense6_1")?.f_softmax(1, Kind::Float)?;
            Ok((scores, self.dense(&x, "onet.dense6_2")?, Some(self.dense(&x, "onet.dense6_3")?)))
        })
    }

    /// Runs crops of `side_px` in batches of the bucket sizes.
    fn in_buckets(
        &self,
        crops: &[f32],
        side_px: u32,
        forward: impl Fn(&Tensor) -> Result<(Tensor, Tensor, Option<Tensor>), TchError>,
    ) -> Result<Vec<CropOutput>, NnError> {
        let n_numbers = (side_px * side_px * 3) as usize;
        if !crops.len().is_multiple_of(n_numbers) {
            return Err(NnError::Torch { detail: format!("{} numbers, expected crops of {n_numbers}", crops.len()) });
        }
        let mut outputs = Vec::with_capacity(crops.len() / n_numbers);
        for some in crops.chunks(MAX_CROPS * n_numbers) {
            let n = some.len() / n_numbers;
            let bucket = CROP_BUCKETS.into_iter().find(|bucket| *bucket >= n).unwrap_or(n);
            let mut filled = some.to_vec();
            filled.resize(bucket * n_numbers, 0.0);
            let images = self.images(&filled, bucket, side_px, side_px)?;
            let (scores, offsets, landmarks) = tch::no_grad(|| forward(&images))?;
            let (scores, offsets) = (rows(&scores)?, rows(&offsets)?);
            let landmarks = landmarks.map(|landmarks| rows(&landmarks)).transpose()?;
            for i in 0..n {
                let marks = landmarks.as_ref().map_or([0.0; 10], |marks| array(&marks[i]));
                outputs.push(CropOutput {
                    score: array::<2>(&scores[i])[1],
                    offsets: array(&offsets[i]),
                    landmarks: marks,
                });
            }
        }
        Ok(outputs)
    }

    /// Converts interleaved images to `[n, 3, height, width]`, channels-last.
    fn images(&self, pixels: &[f32], n: usize, width: u32, height: u32) -> Result<Tensor, NnError> {
        let expected = n * width as usize * height as usize * 3;
        if pixels.len() != expected {
            return Err(NnError::Torch { detail: format!("{} numbers of pixels, expected {expected}", pixels.len()) });
        }
        let shape = [n as i64, height.into(), width.into(), 3];
        Ok(Tensor::f_from_slice(pixels)?.f_view(shape)?.f_to_device(self.device)?.f_permute([0, 3, 1, 2])?)
    }

    /// A convolution without padding and its parametric ReLU with one slope a channel.
    fn convolve(&self, x: &Tensor, network: &str, layer: usize) -> Result<Tensor, TchError> {
        self.conv(x, &format!("{network}.conv{layer}"))?.f_prelu(self.weight(&format!("{network}.prelu{layer}")))
    }

    fn conv(&self, x: &Tensor, layer: &str) -> Result<Tensor, TchError> {
        x.f_conv2d(self.weight(layer), Some(self.bias(layer)), [1, 1], [0, 0], [1, 1], 1)
    }

    fn dense(&self, x: &Tensor, layer: &str) -> Result<Tensor, TchError> {
        x.f_linear(self.weight(layer), Some(self.bias(layer)))
    }

    fn weight(&self, layer: &str) -> &Tensor {
        &self.parameters[&format!("{layer}.weight")]
    }

    fn bias(&self, layer: &str) -> &Tensor {
        &self.parameters[&format!("{layer}.bias")]
    }
}

/// Flattens `[N, C, H, W]` to `[N, W * H * C]`, the published networks' order: column by column.
fn flat(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_permute([0, 3, 2, 1])?.f_contiguous()?.f_flatten(1, -1)
}

/// Returns the first `N` numbers, padded with zeros.
fn array<const N: usize>(values: &[f32]) -> [f32; N] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0))
}
