//! The forms of dlib's networks, independent of file formats.
//!
//! Neither file format gives weights meaningful names: `.dat` streams have none, ONNX graphs number them. Both readers
//! therefore return the layers in forward order, and only this file knows each layer's name. A network of another form
//! is refused with an error that names the first unexpected layer.

use std::{iter::Peekable, vec};

use bytes::Bytes;

use crate::nn::{Dtype, TensorData};

/// The numbers of one weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Values {
    pub(super) shape: Vec<i64>,
    /// f32, little-endian.
    pub(super) bytes: Bytes,
}

impl Values {
    /// Transposes a matrix, or returns what is wrong with it.
    pub(super) fn transposed(&self) -> Result<Self, String> {
        let (rows, columns) = match self.shape.as_slice() {
            [rows, columns] => (usize::try_from(*rows).unwrap_or(0), usize::try_from(*columns).unwrap_or(0)),
            other => return Err(format!("has the shape {other:?}, which is not a matrix")),
        };
        if rows.checked_mul(columns).and_then(|n| n.checked_mul(4)) != Some(self.bytes.len()) {
            return Err(format!("has {} bytes, which do not match {rows} by {columns} numbers", self.bytes.len()));
        }
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for column in 0..columns {
            for row in 0..rows {
                let from = (row * columns + column) * 4;
                bytes.extend_from_slice(&self.bytes[from..from + 4]);
            }
        }
        Ok(Self { shape: vec![columns as i64, rows as i64], bytes: bytes.into() })
    }
}

/// A sliding window over an image, in pixels, the same along both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) size: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
}

/// One layer, in forward order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Layer {
    Conv {
        window: Window,
        weight: Values,
        bias: Option<Values>,
    },
    /// A factor and a shift for each channel.
    Affine {
        scale: Values,
        offset: Values,
    },
    Relu,
    MaxPool(Window),
    /// Also a block's shortcut, which follows the block's last affine layer.
    AvgPool(Window),
    /// The mean of the whole image.
    GlobalAvgPool,
    /// The sum of a block and its shortcut, the smaller padded with zeros behind its last channel, row, column.
    Add,
    /// One factor for all values.
    Scale(Values),
    /// A fully connected layer; the weight's shape is `[outputs, inputs]`.
    Linear {
        weight: Values,
        bias: Option<Values>,
    },
}

impl Layer {
    fn describe(&self) -> String {
        match self {
            Self::Conv { window, weight, .. } => format!("a convolution {:?} with {window:?}", weight.shape),
            Self::Affine { .. } => "an affine layer".to_owned(),
            Self::Relu => "a relu".to_owned(),
            Self::MaxPool(window) => format!("a maximum pool with {window:?}"),
            Self::AvgPool(window) => format!("an average pool with {window:?}"),
            Self::GlobalAvgPool => "an average over the whole image".to_owned(),
            Self::Add => "a sum with an earlier layer".to_owned(),
            Self::Scale(_) => "a multiplication".to_owned(),
            Self::Linear { weight, .. } => format!("a linear layer {:?}", weight.shape),
        }
    }
}

const STEM: Window = Window { size: 7, stride: 2, padding: 0 };
const STEM_POOL: Window = Window { size: 3, stride: 2, padding: 0 };
const SAME: Window = Window { size: 3, stride: 1, padding: 1 };
const DOWN: Window = Window { size: 3, stride: 2, padding: 0 };
const HALF: Window = Window { size: 2, stride: 2, padding: 0 };

/// Names the weights of these layers: as in [`DlibResNet`](super::DlibResNet) if there are shortcuts, else as in
/// [`DlibPlainNet`](super::DlibPlainNet).
pub(super) fn name_layers(layers: Vec<Layer>) -> Result<Vec<TensorData>, String> {
    let is_residual = layers.iter().any(|layer| matches!(layer, Layer::Add));
    let mut walk = Walk { layers: layers.into_iter().peekable(), n_passed: 0, tensors: Vec::new() };
    if is_residual {
        walk.residual()?
    } else {
        walk.plain()?
    }
    if let Some(layer) = walk.layers.next() {
        return Err(walk.unexpected(Some(&layer), "the end of the network"));
    }
    Ok(walk.tensors)
}

struct Walk {
    layers: Peekable<vec::IntoIter<Layer>>,
    n_passed: usize,
    tensors: Vec<TensorData>,
}

impl Walk {
    fn residual(&mut self) -> Result<(), String> {
        self.conv("conv1", STEM)?;
        self.affine("affine1")?;
        self.exactly(&Layer::Relu)?;
        self.exactly(&Layer::MaxPool(STEM_POOL))?;
        let mut n_blocks = 0;
        while let Some(Layer::Conv { window, .. }) = self.layers.peek() {
            let first = if *window == DOWN { DOWN } else { SAME };
            let block = format!("blocks.{n_blocks}");
            self.pair(&block, first)?;
            if first == DOWN {
                self.exactly(&Layer::AvgPool(HALF))?;
            }
            self.exactly(&Layer::Add)?;
            self.exactly(&Layer::Relu)?;
            n_blocks += 1;
        }
        self.exactly(&Layer::GlobalAvgPool)?;
        self.linear("fc")
    }

    fn plain(&mut self) -> Result<(), String> {
        let mut n_blocks = 0;
        while let Some(Layer::Conv { .. }) = self.layers.peek() {
            let block = format!("blocks.{n_blocks}");
            self.pair(&block, SAME)?;
            self.exactly(&Layer::Relu)?;
            self.exactly(&Layer::AvgPool(HALF))?;
            n_blocks += 1;
        }
        self.scale("scale1")?;
        self.linear("fc1")?;
        self.exactly(&Layer::Relu)?;
        self.scale("scale2")?;
        self.linear("fc2")
    }

    /// Two convolutions with their affine layers and a relu between.
    fn pair(&mut self, block: &str, first: Window) -> Result<(), String> {
        self.conv(&format!("{block}.conv1"), first)?;
        self.affine(&format!("{block}.affine1"))?;
        self.exactly(&Layer::Relu)?;
        self.conv(&format!("{block}.conv2"), SAME)?;
        self.affine(&format!("{block}.affine2"))
    }

    fn conv(&mut self, name: &str, expected: Window) -> Result<(), String> {
        match self.next() {
            Some(Layer::Conv { window, weight, bias }) if window == expected => {
                self.keep(format!("{name}.weight"), weight);
                if let Some(bias) = bias {
                    self.keep(format!("{name}.bias"), bias);
                }
                Ok(())
            }
            other => Err(self.unexpected(other.as_ref(), &format!("a convolution with {expected:?} as {name}"))),
        }
    }

    fn affine(&mut self, name: &str) -> Result<(), String> {
        match self.next() {
            Some(Layer::Affine { scale, offset }) => {
                self.keep(format!("{name}.weight"), scale);
                self.keep(format!("{name}.bias"), offset);
                Ok(())
            }
            other => Err(self.unexpected(other.as_ref(), &format!("an affine layer as {name}"))),
        }
    }

    fn scale(&mut self, name: &str) -> Result<(), String> {
        match self.next() {
            Some(Layer::Scale(factor)) => {
                self.keep(name.to_owned(), factor);
                Ok(())
            }
            other => Err(self.unexpected(other.as_ref(), &format!("a multiplication as {name}"))),
        }
    }

    fn linear(&mut self, name: &str) -> Result<(), String> {
        match self.next() {
            Some(Layer::Linear { weight, bias }) => {
                self.keep(format!("{name}.weight"), weight);
                if let Some(bias) = bias {
                    self.keep(format!("{name}.bias"), bias);
                }
                Ok(())
            }
            other => Err(self.unexpected(other.as_ref(), &format!("a linear layer as {name}"))),
        }
    }

    fn exactly(&mut self, expected: &Layer) -> Result<(), String> {
        match self.next() {
            Some(layer) if layer == *expected => Ok(()),
            other => Err(self.unexpected(other.as_ref(), &expected.describe())),
        }
    }

    fn next(&mut self) -> Option<Layer> {
        self.n_passed += 1;
        self.layers.next()
    }

    fn keep(&mut self, name: String, values: Values) {
        self.tensors.push(TensorData { name, shape: values.shape, dtype: Dtype::F32, bytes: values.bytes });
    }

    fn unexpected(&self, found: Option<&Layer>, expected: &str) -> String {
        let found = found.map_or_else(|| "missing".to_owned(), Layer::describe);
        format!("it is not a network of this kind: layer {} is {found}, expected {expected}", self.n_passed)
    }
}
