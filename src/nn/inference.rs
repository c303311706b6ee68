//! Runs a network for inference, with no tch types in its interface.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::{
    Device, HeadKind, NetworkSpec, NnError, TensorData,
    head::{EMBEDDING_16, EMBEDDING_512},
    network::{Network, channels_last},
};

/// The batch sizes that networks run with; other sizes are padded to the next. Kernels are prepared and cached by
/// shape, so arbitrary sizes would cost unlimited memory and time.
pub const BUCKETS: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// A network's output for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct RawOutput {
    /// For each head: a regression's number, or a classification's probabilities.
    pub heads: Vec<Vec<f32>>,
    /// For each layer: its raw embedding.
    pub embeddings: BTreeMap<String, Vec<f32>>,
}

/// A network with fixed weights on one device. It may move between threads, but only one may use it at a time.
#[derive(Debug)]
pub struct InferenceNetwork {
    network: Network,
    heads: Vec<HeadKind>,
    normalisation: Normalisation,
}

/// Converts bytes of RGB to the network's input.
#[derive(Debug)]
pub struct Normalisation {
    /// 1 / (255 std), by channel.
    scale: Tensor,
    /// -mean / std, by channel.
    shift: Tensor,
    device: tch::Device,
}

impl Normalisation {
    /// Creates the normalisation for this mean and standard deviation of RGB in 0..1.
    #[must_use]
    pub fn new(mean: [f32; 3], std: [f32; 3], device: Device) -> Self {
        let scale: Vec<f32> = std.iter().map(|s| 1.0 / (255.0 * s)).collect();
        let shift: Vec<f32> = mean.iter().zip(&std).map(|(m, s)| -m / s).collect();
        let channel = |values: &[f32]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(device.tch());
        Self { scale: channel(&scale), shift: channel(&shift), device: device.tch() }
    }

    /// Converts `n` consecutive interleaved RGB squares to `[n, 3, side, side]`, channels-last.
    ///
    /// # Errors
    /// [`NnError::Torch`] if the number of bytes does not match.
    pub fn apply(&self, rgb: &[u8], n: usize, side_px: u32) -> Result<Tensor, NnError> {
        let side = i64::from(side_px);
        let expected = n * side_px as usize * side_px as usize * 3;
        if rgb.len() != expected {
            return Err(NnError::Torch { detail: format!("{} bytes of pixels, expected {expected}", rgb.len()) });
        }
        // Interleaved bytes are channels-last already: the permuted view keeps that layout.
        let bytes = Tensor::f_from_slice(rgb)?.f_view([n as i64, side, side, 3])?.f_to_device(self.device)?;
        let mut image = bytes.f_to_kind(Kind::Float)?.f_permute([0, 3, 1, 2])?;
        Ok(image.f_mul_(&self.scale)?.f_add_(&self.shift)?)
    }
}

impl InferenceNetwork {
    /// Loads a network from its tensors, which must be complete and no others.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`], [`NnError::OutOfMemory`].
    pub fn load(
        spec: &NetworkSpec,
        tensors: &[TensorData],
        mean: [f32; 3],
        std: [f32; 3],
        device: Device,
    ) -> Result<Self, NnError> {
        let mut network = Network::new(spec, device);
        network.load(tensors)?;
        for tensor in network.variables().variables().values() {
            let _ = tensor.set_requires_grad(false);
        }
        let heads = spec.heads.iter().map(|(_, kind)| *kind).collect();
        Ok(Self { network, heads, normalisation: Normalisation::new(mean, std, device) })
    }

    /// Runs the network on interleaved RGB squares of `side_px`, up to the largest bucket.
    ///
    /// # Errors
    /// [`NnError::OutOfMemory`], or [`NnError::Torch`] for pixels of another size.
    pub fn infer(&mut self, rgb: &[&[u8]], side_px: u32) -> Result<Vec<RawOutput>, NnError> {
        if rgb.is_empty() {
            return Ok(Vec::new());
        }
        let (bytes, bucket) = fill_bucket(rgb, side_px)?;
        tch::no_grad(|| {
            let images = self.normalisation.apply(&bytes, bucket, side_px)?;
            let output = self.network.forward_t(&channels_last(&images), false)?;
            let heads = self.heads.iter().zip(&output.heads).map(|(kind, raw)| {
                let values = match kind {
                    HeadKind::Regression => raw.shallow_clone(),
                    HeadKind::Classification { .. } => raw.f_softmax(-1, Kind::Float)?,
                };
                rows(&values)
            });
            let heads = heads.collect::<Result<Vec<_>, NnError>>()?;
            let (wide, narrow) = (rows(&output.embedding512)?, rows(&output.embedding16)?);
            let image = |i: usize| RawOutput {
                heads: heads.iter().map(|rows| rows[i].clone()).collect(),
                embeddings: BTreeMap::from([
                    (EMBEDDING_512.to_owned(), wide[i].clone()),
                    (EMBEDDING_16.to_owned(), narrow[i].clone()),
                ]),
            };
            Ok((0..rgb.len()).map(image).collect())
        })
    }
}

/// Joins squares of pixels, pads them with black ones to a bucket, and returns the bucket, too.
///
/// # Errors
/// [`NnError::Torch`] for pixels of another size, or more images than the largest bucket.
pub(super) fn fill_bucket(rgb: &[&[u8]], side_px: u32) -> Result<(Vec<u8>, usize), NnError> {
    let bucket = BUCKETS
        .into_iter()
        .find(|b| *b >= rgb.len())
        .ok_or_else(|| NnError::Torch { detail: format!("a batch of {} is over the largest bucket", rgb.len()) })?;
    let n_bytes = side_px as usize * side_px as usize * 3;
    if let Some(wrong) = rgb.iter().find(|image| image.len() != n_bytes) {
        return Err(NnError::Torch { detail: format!("{} bytes of pixels, expected {n_bytes}", wrong.len()) });
    }
    let mut bytes = rgb.concat();
    bytes.resize(bucket * n_bytes, 0);
    Ok((bytes, bucket))
}

/// Runs `forward` on interleaved RGB squares of `side_px`, up to the largest bucket, and returns a row for each. The
/// input is normalised, channels-last and padded to a bucket.
///
/// # Errors
/// Those of [`fill_bucket`] and `forward`, [`NnError::OutOfMemory`].
pub(super) fn infer_squares(
    rgb: &[&[u8]],
    side_px: u32,
    normalisation: &Normalisation,
    forward: impl Fn(&Tensor) -> Result<Tensor, NnError>,
) -> Result<Vec<Vec<f32>>, NnError> {
    if rgb.is_empty() {
        return Ok(Vec::new());
    }
    let (bytes, bucket) = fill_bucket(rgb, side_px)?;
    let images = tch::no_grad(|| normalisation.apply(&bytes, bucket, side_px))?;
    let mut outputs = rows(&forward(&images)?)?;
    outputs.truncate(rgb.len());
    Ok(outputs)
}

/// Splits `[N, n]` into rows.
pub(super) fn rows(tensor: &Tensor) -> Result<Vec<Vec<f32>>, NnError> {
    let width = usize::try_from(*tensor.size().last().unwrap_or(&1)).unwrap_or(1).max(1);
    let flat = tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let values = Vec::<f32>::try_from(&flat)?;
    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, golden_input};

    fn spec() -> NetworkSpec {
        NetworkSpec {
            architecture: Architecture::ResNet18,
            heads: vec![
                ("age".to_owned(), HeadKind::Regression),
                ("gender".to_owned(), HeadKind::Classification { n_labels: 2 }),
            ],
            dropout: 0.5,
        }
    }

    fn network() -> InferenceNetwork {
        let tensors = Network::new(&spec(), Device::Cpu).export().unwrap();
        InferenceNetwork::load(&spec(), &tensors, [0.5; 3], [0.25; 3], Device::Cpu).unwrap()
    }

    #[test]
    fn an_answer_does_not_depend_on_its_neighbours_in_the_batch() {
        let mut network = network();
        let images: Vec<_> = (0..3).map(|seed| golden_input(seed, 64)).collect();
        let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let together = network.infer(&views, 64).unwrap();
        for (i, view) in views.iter().enumerate() {
            let alone = &network.infer(&[view], 64).unwrap()[0];
            assert!((alone.heads[0][0] - together[i].heads[0][0]).abs() < 1e-4);
            assert!((alone.heads[1].iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!(alone.embeddings[EMBEDDING_512].len(), 512);
            assert_eq!(alone.embeddings[EMBEDDING_16].len(), 16);
        }
        assert_ne!(together[0].embeddings, together[1].embeddings);
    }

    #[test]
    fn wrong_sizes_and_weights_are_errors_not_panics() {
        let mut network = network();
        assert!(network.infer(&[&[0; 5]], 64).is_err());
        assert!(network.infer(&[&golden_input(0, 32)], 64).is_err());
        assert!(network.infer(&vec![golden_input(0, 32).as_slice(); 33], 32).is_err());
        let mut tensors = Network::new(&spec(), Device::Cpu).export().unwrap();
        tensors[0].shape.push(1);
        let last = tensors.pop().unwrap();
        tensors.push(TensorData { name: "stranger".to_owned(), ..last.clone() });
        let error = InferenceNetwork::load(&spec(), &tensors, [0.5; 3], [0.5; 3], Device::Cpu).unwrap_err().to_string();
        for named in [tensors[0].name.as_str(), last.name.as_str(), "stranger"] {
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }
}
