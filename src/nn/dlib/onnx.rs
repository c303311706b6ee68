//! Names the weights of an ONNX graph that was converted from dlib.
//!
//! Such graphs number their layers. The nodes are followed in order, through each block and its shortcut, until the
//! layers are in a sequence; `form` then names them.

use std::collections::HashMap;

use super::form::{Layer, Values, Window, name_layers};
use crate::nn::{
    Dtype, TensorData,
    onnx::{Graph, Node},
};

/// Returns the weights of a network converted from dlib, under our names. The graph must be exactly such a network.
///
/// # Errors
/// What is wrong with the file, or which node is unexpected.
pub fn parse_dlib_onnx(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let graph = Graph::read(bytes)?;
    let mut weights = HashMap::new();
    for initialiser in graph.initialisers {
        let tensor = initialiser.data()?;
        if let Some(twice) = weights.insert(tensor.name.clone(), tensor) {
            return Err(format!("tensor {} occurs twice", twice.name));
        }
    }
    let [output] = graph.outputs.as_slice() else {
        return Err(format!("its graph has {} outputs, expected 1", graph.outputs.len()));
    };
    let mut walk = Walk { weights, main: String::new(), around: String::new(), layers: Vec::new() };
    for (i, node) in graph.nodes.iter().enumerate() {
        if i == 0 {
            walk.main = node.input(0)?.to_owned();
        }
        walk.step(node).map_err(|why| format!("node {} ({}) {why}", node.name, node.op))?;
    }
    if walk.main != *output {
        return Err(format!("its last node does not produce the output {output}"));
    }
    if let Some(unused) = walk.weights.keys().min() {
        return Err(format!("tensor {unused} is used by no node"));
    }
    name_layers(walk.layers)
}

/// Follows an image's path through the graph.
struct Walk {
    /// The initialisers that no node has used yet.
    weights: HashMap<String, TensorData>,
    /// The name of the last layer's output.
    main: String,
    /// The name of the current block's shortcut.
    around: String,
    layers: Vec<Layer>,
}

impl Walk {
    fn step(&mut self, node: &Node<'_>) -> Result<(), String> {
        let (from, to) = (node.input(0)?, node.output()?);
        if node.op != "Add"
            && matches!(self.layers.last(), Some(Layer::Affine { offset, .. }) if offset.bytes.is_empty())
        {
            return Err("is in the place of the addition that must follow a multiplication".to_owned());
        }
        match node.op {
            "Conv" => {
                self.follows(from)?;
                node.only(&["kernel_shape", "pads", "strides", "dilations", "group", "auto_pad"])?;
                let weight = self.take(node.input(1)?)?;
                let bias = node.inputs.get(2).map(|name| self.take(name)).transpose()?;
                let window = node.window()?;
                if node.ints("dilations").iter().any(|d| *d != 1) || node.int("group", 1) != 1 {
                    return Err("has dilations or groups".to_owned());
                }
                if weight.shape.len() != 4 || weight.shape[2..] != [window.size, window.size] {
                    return Err(format!("has a weight of shape {:?} for {window:?}", weight.shape));
                }
                self.layers.push(Layer::Conv { window, weight, bias });
            }
            "Mul" => {
                self.follows(from)?;
                let factor = self.take(node.input(1)?)?;
                if matches!(self.layers.last(), Some(Layer::Conv { .. })) {
                    let scale = by_channel(factor)?;
                    let offset = Values { shape: Vec::new(), bytes: bytes::Bytes::new() };
                    self.layers.push(Layer::Affine { scale, offset });
                } else if factor.bytes.len() == 4 {
                    self.layers.push(Layer::Scale(Values { shape: vec![1], ..factor }));
                } else {
                    return Err(format!("multiplies by a tensor of shape {:?}", factor.shape));
                }
            }
            "Add" if self.weights.contains_key(node.input(1)?) => {
                self.follows(from)?;
                let shift = by_channel(self.take(node.input(1)?)?)?;
                match self.layers.last_mut() {
                    Some(Layer::Affine { scale, offset }) if offset.bytes.is_empty() && scale.shape == shift.shape => {
                        *offset = shift;
                    }
                    _ => return Err("adds a tensor, but not to a multiplication by as many channels".to_owned()),
                }
            }
            "Add" => {
                let (a, b) = (from, node.input(1)?);
                let pairs = [(self.main.as_str(), self.around.as_str()), (self.around.as_str(), self.main.as_str())];
                if self.around.is_empty() || !pairs.contains(&(a, b)) {
                    return Err(format!("adds {a} and {b}, expected {} and {}", self.main, self.around));
                }
                self.around.clear();
                self.layers.push(Layer::Add);
            }
            "Relu" => {
                self.follows(from)?;
                self.layers.push(Layer::Relu);
            }
            "MaxPool" => {
                self.follows(from)?;
                node.only(&["kernel_shape", "pads", "strides", "dilations", "ceil_mode", "storage_order", "auto_pad"])?;
                self.layers.push(Layer::MaxPool(node.pool()?));
            }
            "AveragePool" => {
                node.only(&["kernel_shape", "pads", "strides", "ceil_mode", "count_include_pad", "auto_pad"])?;
                self.layers.push(Layer::AvgPool(node.pool()?));
                if self.goes_around(from) {
                    self.around = to.to_owned();
                    return Ok(());
                }
                self.follows(from)?;
            }
            "Pad" => {
                node.check_pad()?;
                let pads = self.weights.get(node.input(1)?).ok_or("has pads that are not a tensor of the file")?;
                let leading = pads.bytes.get(..pads.bytes.len() / 2).unwrap_or_default();
                if pads.dtype != Dtype::I64 || pads.shape != [8] || leading.iter().any(|b| *b != 0) {
                    return Err("does not pad four dimensions at their ends only".to_owned());
                }
                self.weights.remove(node.input(1)?);
                if self.goes_around(from) {
                    self.around = to.to_owned();
                    return Ok(());
                }
                self.follows(from)?;
            }
            "GlobalAveragePool" => {
                self.follows(from)?;
                self.layers.push(Layer::GlobalAvgPool);
            }
            "Flatten" => {
                self.follows(from)?;
                if node.int("axis", 1) != 1 {
                    return Err("flattens other dimensions than all but the first".to_owned());
                }
            }
            "Gemm" => {
                self.follows(from)?;
                node.only(&["alpha", "beta", "transA", "transB"])?;
                if node.float("alpha", 1.0) != 1.0 || node.float("beta", 1.0) != 1.0 || node.int("transA", 0) != 0 {
                    return Err("has factors, or a transposed input".to_owned());
                }
                let mut weight = self.take(node.input(1)?)?;
                if node.int("transB", 0) == 0 {
                    weight = weight.transposed().map_err(|why| format!("has a weight that {why}"))?;
                }
                let bias = node.inputs.get(2).map(|name| self.take(name)).transpose()?;
                self.layers.push(Layer::Linear { weight, bias });
            }
            // Callers convert logits to probabilities themselves.
            "Softmax" if matches!(self.layers.last(), Some(Layer::Linear { .. })) => self.follows(from)?,
            _ => return Err("is not an operation of such a network".to_owned()),
        }
        self.main = to.to_owned();
        // A block's output is the next block's input and shortcut.
        let n = self.layers.len();
        let ends_block = match self.layers.last() {
            Some(Layer::MaxPool(_)) => true,
            Some(Layer::Relu) => matches!(self.layers.get(n.wrapping_sub(2)), Some(Layer::Add)),
            _ => false,
        };
        if ends_block {
            self.around = to.to_owned();
        }
        Ok(())
    }

    fn goes_around(&self, from: &str) -> bool {
        !from.is_empty() && from == self.around && self.around != self.main
    }

    fn follows(&self, from: &str) -> Result<(), String> {
        if from == self.main { Ok(()) } else { Err(format!("reads {from}, expected {}", self.main)) }
    }

    fn take(&mut self, name: &str) -> Result<Values, String> {
        let tensor = self.weights.remove(name).ok_or_else(|| format!("needs the tensor {name}, which is not there"))?;
        match tensor.dtype {
            Dtype::F32 => Ok(Values { shape: tensor.shape, bytes: tensor.bytes }),
            Dtype::I64 => Err(format!("needs numbers of f32, but {name} is i64")),
        }
    }
}

/// Reshapes `[1, C, 1, 1]` to `[C]`.
fn by_channel(values: Values) -> Result<Values, String> {
    match values.shape.as_slice() {
        [1, n, 1, 1] => Ok(Values { shape: vec![*n], bytes: values.bytes }),
        other => Err(format!("has a tensor of shape {other:?}, expected [1, C, 1, 1]")),
    }
}

/// Interpretation of the attributes of such a graph's nodes.
impl Node<'_> {
    fn check_pad(&self) -> Result<(), String> {
        self.only(&["mode"])?;
        if self.inputs.len() != 2 || self.attribute("mode").is_some_and(|mode| mode.text != b"constant") {
            return Err("pads with values other than zeros".to_owned());
        }
        Ok(())
    }

    fn window(&self) -> Result<Window, String> {
        let square = |name: &str, missing: i64| match self.ints(name) {
            [] => Ok(missing),
            [first, rest @ ..] if rest.iter().all(|n| n == first) => Ok(*first),
            other => Err(format!("has the {name} {other:?}")),
        };
        Ok(Window { size: square("kernel_shape", 0)?, stride: square("strides", 1)?, padding: square("pads", 0)? })
    }

    /// Returns a pool's window. Pixels outside the image must not count.
    fn pool(&self) -> Result<Window, String> {
        if self.int("ceil_mode", 0) != 0 || self.int("count_include_pad", 0) != 0 {
            return Err("includes pixels beyond the image's edges".to_owned());
        }
        if self.int("storage_order", 0) != 0 || self.ints("dilations").iter().any(|d| *d != 1) {
            return Err("has dilations or another order".to_owned());
        }
        self.window()
    }
}

#[cfg(test)]
mod tests;
