//! A trainable network: body and head.

use std::collections::{BTreeMap, HashMap};

use tch::{Kind, TchError, Tensor, nn::VarStore};

use super::{
    Device, Dtype, NetworkSpec, NnError, TensorData,
    error::is_out_of_memory,
    head::{Head, HeadOutput},
    resnet::Body,
};

/// The mean of ImageNet's RGB in 0..1, which the published bodies expect.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// The standard deviation of ImageNet's RGB in 0..1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The part of a network that a parameter belongs to, for the optimiser's groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParameterGroup {
    /// Convolutions of the body.
    BodyWeights,
    /// Batch norm of the body.
    BodyNorms,
    /// Weights of the head's linear layers.
    HeadWeights,
    /// Batch norm and biases of the head.
    HeadNorms,
}

impl ParameterGroup {
    fn of(name: &str, tensor: &Tensor) -> Self {
        // Batch norm and biases have one dimension.
        match (name.starts_with("head"), tensor.dim() > 1) {
            (false, true) => Self::BodyWeights,
            (false, false) => Self::BodyNorms,
            (true, true) => Self::HeadWeights,
            (true, false) => Self::HeadNorms,
        }
    }
}

/// A network and its variables.
#[derive(Debug)]
pub struct Network {
    vs: VarStore,
    body: Body,
    head: Head,
    frozen_body: bool,
}

impl Network {
    /// Creates a network with random weights from libtorch's generator (see [`tch::manual_seed`]).
    #[must_use]
    pub fn new(spec: &NetworkSpec, device: Device) -> Self {
        let vs = VarStore::new(device.tch());
        let body = Body::new(&vs.root(), spec.architecture);
        let head = Head::new(&vs.root(), spec);
        let mut network = Self { vs, body, head, frozen_body: false };
        network.use_channels_last();
        network
    }

    /// Stores convolution weights channels-last, which oneDNN runs faster; names and values stay the same.
    fn use_channels_last(&mut self) {
        tch::no_grad(|| {
            for mut tensor in self.vs.variables().into_values().filter(|t| t.dim() == 4) {
                let laid_out = channels_last(&tensor);
                tensor.set_data(&laid_out);
            }
        });
    }

    /// Runs the network on normalised images `[N, 3, H, W]`.
    ///
    /// # Errors
    /// Errors of libtorch: out of memory, or images smaller than the body's 32 pixels.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> Result<HeadOutput, NnError> {
        let features = if self.frozen_body {
            tch::no_grad(|| self.body.forward_t(images, false))?
        } else {
            self.body.forward_t(images, train)?
        };
        Ok(self.head.forward_t(&features, train)?)
    }

    /// Freezes the body, batch norm included, or makes it trainable again.
    pub fn freeze_body(&mut self, freeze: bool) {
        self.frozen_body = freeze;
        for (name, tensor) in self.vs.variables() {
            if !name.starts_with("head") && !is_buffer(&name) {
                let _ = tensor.set_requires_grad(!freeze);
            }
        }
    }

    /// Initialises a regression to the mean of its labels instead of nearly zero, which saves the first steps.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn set_head_bias(&mut self, head_idx: usize, value: f64) -> Result<(), NnError> {
        Ok(self.head.set_bias(head_idx, value)?)
    }

    /// Returns the trainable parameters by part. Each carries its gradient after a backward pass.
    #[must_use]
    pub fn parameters(&self) -> BTreeMap<ParameterGroup, Vec<Tensor>> {
        let mut parts: BTreeMap<ParameterGroup, Vec<(String, Tensor)>> = BTreeMap::new();
        for (name, tensor) in self.vs.variables() {
            if tensor.requires_grad() {
                parts.entry(ParameterGroup::of(&name, &tensor)).or_default().push((name, tensor));
            }
        }
        // A map's order is random; the optimiser needs a fixed order.
        let in_order = |mut named: Vec<(String, Tensor)>| {
            named.sort_by(|a, b| a.0.cmp(&b.0));
            named.into_iter().map(|(_, tensor)| tensor).collect()
        };
        parts.into_iter().map(|(part, named)| (part, in_order(named))).collect()
    }

    /// Returns every parameter and buffer, sorted by name.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn export(&self) -> Result<Vec<TensorData>, NnError> {
        let mut tensors = Vec::new();
        for (name, tensor) in self.vs.variables() {
            tensors.push(to_data(name, &tensor)?);
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }

    /// Loads every tensor whose name and shape match; returns their names.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn take_matching(&mut self, tensors: &[TensorData]) -> Result<Vec<String>, NnError> {
        let mut variables = self.vs.variables();
        let mut taken = Vec::new();
        for data in tensors {
            let Some(variable) = variables.get_mut(&data.name) else { continue };
            if variable.size() == data.shape && data.dtype == Dtype::F32 {
                copy_into(variable, data)?;
                taken.push(data.name.clone());
            }
        }
        Ok(taken)
    }

    /// Loads all tensors, which must be exactly those of the network.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that are missing, unexpected or of another shape.
    pub fn load(&mut self, tensors: &[TensorData]) -> Result<(), NnError> {
        check(&self.shapes(), tensors)?;
        self.take_matching(tensors)?;
        Ok(())
    }

    /// Returns the network's variables.
    #[must_use]
    pub fn variables(&self) -> &VarStore {
        &self.vs
    }

    fn shapes(&self) -> HashMap<String, Vec<i64>> {
        self.vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
    }
}

/// The maximum number of names in a message.
const NAMES_SHOWN: usize = 8;

/// Checks that these are exactly the tensors of a network.
pub(super) fn check(expected: &HashMap<String, Vec<i64>>, tensors: &[TensorData]) -> Result<(), NnError> {
    let given: HashMap<&str, &TensorData> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut wrong = Vec::new();
    for (name, shape) in expected {
        match given.get(name.as_str()) {
            None => wrong.push(format!("{name} is missing")),
            Some(t) if t.shape != *shape => wrong.push(format!("{name} has shape {:?}, not {shape:?}", t.shape)),
            Some(t) if t.dtype != Dtype::F32 => wrong.push(format!("{name} is not f32")),
            Some(_) => {}
        }
    }
    // PyTorch's files also hold batch norm's counters of batches, which are not needed.
    wrong.extend(
        tensors
            .iter()
            .filter(|t| !expected.contains_key(&t.name) && !t.name.ends_with("num_batches_tracked"))
            .map(|t| format!("{} is not part of it", t.name)),
    );
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.sort();
    let more = wrong.len().saturating_sub(NAMES_SHOWN);
    wrong.truncate(NAMES_SHOWN);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(NnError::WeightsMismatch { detail: format!("{}{rest}", wrong.join("; ")) })
}

fn is_buffer(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// Returns the same values with the channels innermost in memory. tch has no argument for it, so the permuted tensor is
/// made contiguous and permuted back.
pub fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn to_data(name: String, tensor: &Tensor) -> Result<TensorData, NnError> {
    let shape = tensor.size();
    let flat = tensor.detach().f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let values = Vec::<f32>::try_from(&flat)?;
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(TensorData { name, shape, dtype: Dtype::F32, bytes })
}

/// Tensors that passed the check against a network's shapes, by name.
pub(super) struct CheckedTensors<'a> {
    tensors: HashMap<&'a str, &'a TensorData>,
    device: Device,
}

impl<'a> CheckedTensors<'a> {
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that are missing, unexpected or of another shape.
    pub(super) fn check(
        shapes: &HashMap<String, Vec<i64>>,
        tensors: &'a [TensorData],
        device: Device,
    ) -> Result<Self, NnError> {
        check(shapes, tensors)?;
        Ok(Self { tensors: tensors.iter().map(|t| (t.name.as_str(), t)).collect(), device })
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, NnError> {
        let missing = || NnError::WeightsMismatch { detail: format!("{name} is missing") };
        let data = self.tensors.get(name).ok_or_else(missing)?;
        Ok(to_tensor(data)?.f_to_device(self.device.tch())?)
    }
}

/// Splits the tensors by prefix, and removes the prefix from their names.
///
/// # Errors
/// [`NnError::WeightsMismatch`] naming a tensor without any of the prefixes.
pub(super) fn strip_prefix<const N: usize>(
    tensors: &[TensorData],
    prefixes: [&str; N],
) -> Result<[Vec<TensorData>; N], NnError> {
    let mut parts = [const { Vec::new() }; N];
    for tensor in tensors {
        let part = prefixes.iter().enumerate().find_map(|(i, prefix)| Some((i, tensor.name.strip_prefix(prefix)?)));
        let Some((i, name)) = part else {
            let detail = format!("{} is not part of it; its parts are {}", tensor.name, prefixes.join(", "));
            return Err(NnError::WeightsMismatch { detail });
        };
        parts[i].push(TensorData { name: name.to_owned(), ..tensor.clone() });
    }
    Ok(parts)
}

/// Makes a CPU tensor; `data` must be f32 and as long as its shape requires.
pub(super) fn to_tensor(data: &TensorData) -> Result<Tensor, NnError> {
    let expected = data.shape.iter().map(|d| d.unsigned_abs()).product::<u64>() * 4;
    if data.bytes.len() as u64 != expected || data.dtype != Dtype::F32 {
        let detail = format!("{} holds {} bytes, not the {expected} of its shape", data.name, data.bytes.len());
        return Err(NnError::WeightsMismatch { detail });
    }
    Ok(Tensor::f_from_data_size(&data.bytes, &data.shape, Kind::Float)?)
}

fn copy_into(variable: &mut Tensor, data: &TensorData) -> Result<(), NnError> {
    let source = to_tensor(data)?;
    tch::no_grad(|| variable.f_copy_(&source))?;
    Ok(())
}

impl From<TchError> for NnError {
    fn from(error: TchError) -> Self {
        let detail = error.to_string();
        // The other lines are the C++ backtrace.
        let detail = detail.lines().next().unwrap_or_default().to_owned();
        if is_out_of_memory(&detail) { Self::OutOfMemory { detail } } else { Self::Torch { detail } }
    }
}
