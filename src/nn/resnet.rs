//! The bodies of residual networks, with torchvision's parameter names.
//!
//! He et al., "Deep Residual Learning for Image Recognition" (2015): a 7x7 stem and four layers of residual blocks;
//! basic blocks of two 3x3 convolutions (18, 34) or bottlenecks of 1x1, 3x3, 1x1 (50). The final classifier is omitted.

use tch::{
    TchError, Tensor,
    nn::{self, Init, ModuleT, init::FanInOut, init::NonLinearity, init::NormalOrUniform},
};

use super::Architecture;

impl Architecture {
    /// Returns the number of the body's output channels.
    #[must_use]
    pub fn n_features(self) -> i64 {
        match self {
            Self::ResNet18 | Self::ResNet34 => 512,
            Self::ResNet50 => 2048,
        }
    }

    fn blocks(self) -> [i64; 4] {
        match self {
            Self::ResNet18 => [2, 2, 2, 2],
            Self::ResNet34 | Self::ResNet50 => [3, 4, 6, 3],
        }
    }

    fn is_bottleneck(self) -> bool {
        self == Self::ResNet50
    }
}

/// A convolution without bias, initialised as in torchvision (Kaiming normal over the fan out).
fn conv(vs: &nn::Path<'_>, n_in: i64, n_out: i64, size: i64, stride: i64) -> nn::Conv2D {
    let config = nn::ConvConfig {
        stride,
        padding: size / 2,
        bias: false,
        ws_init: Init::Kaiming {
            dist: NormalOrUniform::Normal,
            fan: FanInOut::FanOut,
            non_linearity: NonLinearity::ReLU,
        },
        ..nn::ConvConfig::default()
    };
    nn::conv2d(vs, n_in, n_out, size, config)
}

/// Batch norm that starts with PyTorch's weight of 1; tch would draw it at random.
pub(super) fn batch_norm_config() -> nn::BatchNormConfig {
    nn::BatchNormConfig { ws_init: Init::Const(1.0), bs_init: Init::Const(0.0), ..nn::BatchNormConfig::default() }
}

fn batch_norm(vs: &nn::Path<'_>, n: i64) -> nn::BatchNorm {
    nn::batch_norm2d(vs, n, batch_norm_config())
}

/// One residual block: convolutions with their norms, and the shortcut.
#[derive(Debug)]
struct Block {
    layers: Vec<(nn::Conv2D, nn::BatchNorm)>,
    downsample: Option<(nn::Conv2D, nn::BatchNorm)>,
}

impl Block {
    fn new(vs: &nn::Path<'_>, n_in: i64, width: i64, stride: i64, bottleneck: bool) -> Self {
        // Input channels, output channels, kernel size, stride.
        let shapes: Vec<(i64, i64, i64, i64)> = if bottleneck {
            vec![(n_in, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        } else {
            vec![(n_in, width, 3, stride), (width, width, 3, 1)]
        };
        let n_out = if bottleneck { 4 * width } else { width };
        let layers = shapes
            .into_iter()
            .enumerate()
            .map(|(i, (n_in, n_out, size, stride))| {
                let i = i + 1;
                (
                    conv(&(vs / format!("conv{i}")), n_in, n_out, size, stride),
                    batch_norm(&(vs / format!("bn{i}")), n_out),
                )
            })
            .collect();
        let downsample = (stride != 1 || n_in != n_out).then(|| {
            let vs = vs / "downsample";
            (conv(&(&vs / 0), n_in, n_out, 1, stride), batch_norm(&(&vs / 1), n_out))
        });
        Self { layers, downsample }
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut y = x.shallow_clone();
        let last = self.layers.len() - 1;
        for (i, (conv, norm)) in self.layers.iter().enumerate() {
            y = norm.forward_t(&y.apply(conv), train);
            if i < last {
                y = y.f_relu_()?;
            }
        }
        let around = match &self.downsample {
            Some((conv, norm)) => norm.forward_t(&x.apply(conv), train),
            None => x.shallow_clone(),
        };
        y.f_add_(&around)?.f_relu_()
    }
}

/// The body: maps images to feature maps of 1/32 of their size.
#[derive(Debug)]
pub(super) struct Body {
    stem: nn::Conv2D,
    stem_norm: nn::BatchNorm,
    blocks: Vec<Block>,
}

impl Body {
    /// Creates the body's variables at the root of `vs`.
    pub(super) fn new(vs: &nn::Path<'_>, architecture: Architecture) -> Self {
        let stem = conv(&(vs / "conv1"), 3, 64, 7, 2);
        let stem_norm = batch_norm(&(vs / "bn1"), 64);
        let mut blocks = Vec::new();
        let mut n_in = 64;
        for (i, n_blocks) in architecture.blocks().into_iter().enumerate() {
            let width = 64 << i;
            for j in 0..n_blocks {
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                let vs = vs / format!("layer{}", i + 1) / j;
                blocks.push(Block::new(&vs, n_in, width, stride, architecture.is_bottleneck()));
                n_in = if architecture.is_bottleneck() { 4 * width } else { width };
            }
        }
        Self { stem, stem_norm, blocks }
    }

    /// Maps `[N, 3, H, W]` to `[N, features, H / 32, W / 32]`.
    pub(super) fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let x = self.stem_norm.forward_t(&x.apply(&self.stem), train).f_relu_()?;
        let mut x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        for block in &self.blocks {
            x = block.forward_t(&x, train)?;
        }
        Ok(x)
    }
}
