//! Reads dlib's serialised networks (`.dat`).
//!
//! dlib writes a network from its last layer to its first: each layer writes the number of its own format, then all
//! earlier layers, then its own weights. So the file begins with one number a layer, then has the input, then the
//! layers' contents in forward order. Nothing identifies a layer but the version of its format ("con_4").
//!
//! Integers are a control byte (the sign, and how many bytes follow) and the bytes, lowest first; settings such as
//! learning rates are an integer and an exponent of two; booleans are the letters 0 and 1; tensors are four dimensions
//! and f32. Every size is compared with the bytes left before anything is allocated, so reading a file takes at most
//! about its own size in memory.

use super::{
    form::{Layer, Values, Window, name_layers},
    numbers::Reader,
    resnet::DLIB_MEANS,
};
use crate::nn::TensorData;

/// The maximum number of layers; the largest known network has 132.
const MAX_LAYERS: usize = 4096;

/// The maximum length of a layer format's name, in bytes.
const MAX_NAME_BYTES: i64 = 64;

/// Parses a face network written by dlib into tensors with the parameter names of [`DlibResNet`](super::DlibResNet).
///
/// # Errors
/// What is wrong with the bytes, and where.
pub fn parse_dlib_dat(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let mut reader = Reader::new(bytes);
    let layers = reader.network().map_err(|why| format!("at byte {}: {why}", reader.at))?;
    name_layers(layers)
}

/// The meaning of a layer's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrapper {
    /// A tag, or a jump to one: without content.
    Tag,
    /// A layer on top of another.
    Layer,
    /// The layer on top of the input, with the number of outputs for a sample.
    First,
}

impl<'a> Reader<'a> {
    /// Reads the layers, in forward order.
    fn network(&mut self) -> Result<Vec<Layer>, String> {
        self.expect_number("the loss layer's format", 1)?;
        self.loss()?;
        let wrappers = self.wrappers()?;
        let mut layers = Vec::new();
        for wrapper in wrappers.iter().rev() {
            if *wrapper == Wrapper::Tag {
                continue;
            }
            layers.push(self.details()?);
            for what in ["whether it is set up", "whether its gradient is stale", "whether it is disabled"] {
                self.truth(what)?;
            }
            // Gradients and cached outputs; a file saved for inference has empty ones.
            for what in ["the gradient of the input", "the cached output", "the last gradient"] {
                self.tensor(what)?;
            }
            if *wrapper == Wrapper::First {
                self.number("the samples' expansion")?;
            }
        }
        let n_left = self.n_left();
        if n_left == 0 { Ok(layers) } else { Err(format!("{n_left} bytes are left behind the network")) }
    }

    fn loss(&mut self) -> Result<(), String> {
        let name = self.text("the loss")?;
        match name {
            "loss_metric_" => Ok(()),
            "loss_metric_2" => {
                self.real("the loss's margin")?;
                self.real("the loss's distance")?;
                Ok(())
            }
            other => Err(format!("the loss is {other}; only loss_metric_ is read")),
        }
    }

    /// Reads one number a layer from the last to the first, and the input. The length of the input's name is larger
    /// than any format's number.
    fn wrappers(&mut self) -> Result<Vec<Wrapper>, String> {
        let mut wrappers = Vec::new();
        loop {
            let at = self.at;
            match self.number("a layer's format")? {
                1 => wrappers.push(Wrapper::Tag),
                2 => wrappers.push(Wrapper::Layer),
                3 => wrappers.push(Wrapper::First),
                n if n > 3 => {
                    self.at = at;
                    self.input()?;
                    return match wrappers.split_last() {
                        Some((Wrapper::Tag, _)) | None => Err("no layer reads the input".to_owned()),
                        Some((_, above)) if above.contains(&Wrapper::First) => {
                            Err("a layer other than the first reads the input".to_owned())
                        }
                        Some(_) => Ok(wrappers),
                    };
                }
                other => return Err(format!("a layer has the format {other}")),
            }
            if wrappers.len() > MAX_LAYERS {
                return Err(format!("it has more than {MAX_LAYERS} layers"));
            }
        }
    }

    fn input(&mut self) -> Result<(), String> {
        let name = self.text("the input")?;
        if name != "input_rgb_image" && name != "input_rgb_image_sized" {
            return Err(format!("the input is {name}; only input_rgb_image and input_rgb_image_sized are read"));
        }
        let sized = name == "input_rgb_image_sized";
        for (channel, expected) in ["red", "green", "blue"].into_iter().zip(DLIB_MEANS) {
            let mean = self.real("the input's means")?;
            if (mean - f64::from(expected)).abs() > 1e-3 {
                return Err(format!("the input's mean of {channel} is {mean}, expected {expected}"));
            }
        }
        if sized {
            self.number("the input's rows")?;
            self.number("the input's columns")?;
        }
        Ok(())
    }

    /// Reads a layer's own content.
    fn details(&mut self) -> Result<Layer, String> {
        let name = self.text("a layer's name")?;
        let layer = match name {
            "con_4" | "con_5" | "con_6" => self.conv(name)?,
            "affine_" | "affine_2" => self.affine(name)?,
            "fc_2" | "fc_3" => self.linear(name)?,
            "relu_" => Layer::Relu,
            "relu_2" => {
                self.enabled(name)?;
                Layer::Relu
            }
            "max_pool_2" => match self.window(name)? {
                Some(window) => Layer::MaxPool(window),
                None => return Err("a maximum pool of the whole image is not read".to_owned()),
            },
            "avg_pool_2" => self.window(name)?.map_or(Layer::GlobalAvgPool, Layer::AvgPool),
            "add_prev_" => Layer::Add,
            "bn_con2" | "bn_fc2" => {
                return Err(format!("{name} is a layer for training; convert it to an affine layer in dlib"));
            }
            other => return Err(format!("the layer {other} is not supported")),
        };
        Ok(layer)
    }

    fn conv(&mut self, name: &str) -> Result<Layer, String> {
        let params = self.tensor("a convolution's weights")?;
        self.number("a convolution's filters")?;
        let window = self.window(name)?.ok_or("a convolution has no size")?;
        let filters = self.dimensions("a convolution's filters", 1)?;
        let biases = self.dimensions("a convolution's biases", 1)?;
        self.learning_rates(name)?;
        if name != "con_4" && !self.truth("whether a convolution has biases")? {
            return Err("a convolution has no biases".to_owned());
        }
        if name == "con_6" && self.truth("whether a convolution has a relu inside")? {
            return Err("a convolution includes a relu; save the network unfused".to_owned());
        }
        if filters[2..] != [window.size, window.size] {
            return Err(format!("a convolution of {} pixels has filters of shape {filters:?}", window.size));
        }
        let (weight, bias) = split(params, &filters, &biases).map_err(|why| format!("a convolution {why}"))?;
        Ok(Layer::Conv {
            window,
            weight: Values { shape: filters.to_vec(), bytes: weight.to_vec().into() },
            bias: Some(flat(bias)),
        })
    }

    fn affine(&mut self, name: &str) -> Result<Layer, String> {
        let params = self.tensor("an affine layer's weights")?;
        let gamma = self.dimensions("an affine layer's factors", 1)?;
        let beta = self.dimensions("an affine layer's shifts", 1)?;
        self.expect_number("an affine layer's mode (0: by channel)", 0)?;
        if name == "affine_2" {
            self.enabled(name)?;
        }
        let (scale, offset) = split(params, &gamma, &beta).map_err(|why| format!("an affine layer {why}"))?;
        if scale.len() != offset.len() {
            return Err(format!("an affine layer has factors {gamma:?} but shifts {beta:?}"));
        }
        Ok(Layer::Affine { scale: flat(scale), offset: flat(offset) })
    }

    fn linear(&mut self, name: &str) -> Result<Layer, String> {
        self.number("a linear layer's outputs")?;
        self.number("a linear layer's inputs")?;
        let params = self.tensor("a linear layer's weights")?;
        let weights = self.dimensions("a linear layer's weights", 1)?;
        let biases = self.dimensions("a linear layer's biases", 1)?;
        let mode = self.number("a linear layer's mode")?;
        self.learning_rates(name)?;
        if name == "fc_3" && !self.truth("whether a linear layer has biases")? && mode == 0 {
            return Err("a linear layer's biases are switched off".to_owned());
        }
        let (weight, bias) = split(params, &weights, &biases).map_err(|why| format!("a linear layer {why}"))?;
        if weights[2..] != [1, 1] {
            return Err(format!("a linear layer has weights of shape {weights:?}"));
        }
        // dlib multiplies inputs by weights: [inputs, outputs].
        let weight = Values { shape: weights[..2].to_vec(), bytes: weight.to_vec().into() }
            .transposed()
            .map_err(|why| format!("a linear layer's weight {why}"))?;
        Ok(Layer::Linear { weight, bias: (!bias.is_empty()).then(|| flat(bias)) })
    }

    /// Reads size, stride and padding, each in rows and columns. Returns `None` for a pool over the whole image.
    fn window(&mut self, name: &str) -> Result<Option<Window>, String> {
        let mut sides = [0; 3];
        for side in &mut sides {
            let (rows, columns) = (self.number(name)?, self.number(name)?);
            if rows != columns || !(0..=1024).contains(&rows) {
                return Err(format!("{name} has a window of {rows} by {columns} pixels"));
            }
            *side = rows;
        }
        let [size, stride, padding] = sides;
        Ok((size > 0).then_some(Window { size, stride, padding }))
    }

    fn enabled(&mut self, name: &str) -> Result<(), String> {
        if self.truth(name)? { Err(format!("{name} is disabled; save the network unfused")) } else { Ok(()) }
    }

    fn learning_rates(&mut self, name: &str) -> Result<(), String> {
        for _ in 0..4 {
            self.real(name)?;
        }
        Ok(())
    }

    /// Reads the bytes of a tensor of any shape.
    fn tensor(&mut self, what: &str) -> Result<&'a [u8], String> {
        let shape = self.dimensions(what, 2)?;
        let n_bytes = n_numbers(&shape).and_then(|n| n.checked_mul(4));
        let n_bytes = n_bytes.ok_or_else(|| format!("{what} have the impossible shape {shape:?}"))?;
        self.take(n_bytes, what)
    }

    /// Reads four dimensions after the number of their format.
    fn dimensions(&mut self, what: &str, format: i64) -> Result<[i64; 4], String> {
        self.expect_number(what, format)?;
        let mut shape = [0; 4];
        for d in &mut shape {
            *d = self.number(what)?;
        }
        if shape.iter().any(|d| *d < 0) {
            return Err(format!("{what} have the impossible shape {shape:?}"));
        }
        Ok(shape)
    }

    fn truth(&mut self, what: &str) -> Result<bool, String> {
        match self.take(1, what)?[0] {
            b'0' => Ok(false),
            b'1' => Ok(true),
            other => Err(format!("{what}: found {other:#04x}, expected 0 or 1")),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let n = self.number(what)?;
        if !(1..=MAX_NAME_BYTES).contains(&n) {
            return Err(format!("{what} has a name of {n} bytes"));
        }
        let bytes = self.take(n as usize, what)?;
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()));
        text.ok_or_else(|| format!("{what} has a name that is not text"))
    }
}

fn n_numbers(shape: &[i64; 4]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}

/// Splits a layer's numbers into its two tensors.
fn split<'a>(params: &'a [u8], first: &[i64; 4], second: &[i64; 4]) -> Result<(&'a [u8], &'a [u8]), String> {
    let n_bytes = |shape| n_numbers(shape).and_then(|n| n.checked_mul(4));
    match (n_bytes(first), n_bytes(second)) {
        (Some(a), Some(b)) if a.checked_add(b) == Some(params.len()) => Ok(params.split_at(a)),
        _ => Err(format!("has {} bytes of weights, expected {first:?} and {second:?}", params.len())),
    }
}

fn flat(bytes: &[u8]) -> Values {
    Values { shape: vec![(bytes.len() / 4) as i64], bytes: bytes.to_vec().into() }
}

#[cfg(test)]
mod tests;
