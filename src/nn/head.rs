//! The head: turns the body's features into outputs.
//!
//! Concatenated pooling (max, then mean), batch norm, dropout, 512 units, ReLU, batch norm, dropout, 16 units, ReLU,
//! and one linear layer for each named output. Parameters: `head.bn1`, `head.fc1`, `head.bn2`, `head.fc2`,
//! `heads.{name}`. Linear layers start as in PyTorch: weight and bias uniform within ±1/√(inputs).

use tch::{
    TchError, Tensor,
    nn::{self, Init, ModuleT},
};

use super::{NetworkSpec, resnet::batch_norm_config};

/// The layer of 512 units, after its ReLU: the default embedding.
pub const EMBEDDING_512: &str = "embedding512";

/// The layer of 16 units, before its ReLU.
pub const EMBEDDING_16: &str = "embedding16";

/// Returns the layers whose outputs can be compared, with their sizes.
#[must_use]
pub fn embedding_layers() -> [(&'static str, u32); 2] {
    [(EMBEDDING_512, 512), (EMBEDDING_16, 16)]
}

fn linear(vs: &nn::Path<'_>, n_in: i64, n_out: i64) -> nn::Linear {
    let bound = 1.0 / (n_in as f64).sqrt();
    let init = Init::Uniform { lo: -bound, up: bound };
    nn::linear(vs, n_in, n_out, nn::LinearConfig { ws_init: init, bs_init: Some(init), bias: true })
}

/// The head's outputs for a batch.
#[derive(Debug)]
pub struct HeadOutput {
    /// `[N, outputs]` for each named output, in the network's order: the number, or logits.
    pub heads: Vec<Tensor>,
    /// `[N, 512]`, after the ReLU.
    pub embedding512: Tensor,
    /// `[N, 16]`, before the ReLU.
    pub embedding16: Tensor,
}

#[derive(Debug)]
pub(super) struct Head {
    norm1: nn::BatchNorm,
    fc1: nn::Linear,
    norm2: nn::BatchNorm,
    fc2: nn::Linear,
    heads: Vec<nn::Linear>,
    dropout: f64,
}

impl Head {
    pub(super) fn new(vs: &nn::Path<'_>, spec: &NetworkSpec) -> Self {
        let n_pooled = 2 * spec.architecture.n_features();
        let head = vs / "head";
        Self {
            norm1: nn::batch_norm1d(&head / "bn1", n_pooled, batch_norm_config()),
            fc1: linear(&(&head / "fc1"), n_pooled, 512),
            norm2: nn::batch_norm1d(&head / "bn2", 512, batch_norm_config()),
            fc2: linear(&(&head / "fc2"), 512, 16),
            heads: spec
                .heads
                .iter()
                .map(|(name, kind)| linear(&(vs / "heads" / name), 16, kind.n_outputs() as i64))
                .collect(),
            dropout: spec.dropout,
        }
    }

    /// Maps `[N, features, h, w]` to the outputs.
    pub(super) fn forward_t(&self, features: &Tensor, train: bool) -> Result<HeadOutput, TchError> {
        let max = features.f_adaptive_max_pool2d([1, 1])?.0;
        let mean = features.f_adaptive_avg_pool2d([1, 1])?;
        let pooled = Tensor::f_cat(&[max, mean], 1)?.f_flatten(1, -1)?;
        let x = self.norm1.forward_t(&pooled, train).f_dropout(self.dropout, train)?;
        let embedding512 = x.apply(&self.fc1).f_relu()?;
        let x = self.norm2.forward_t(&embedding512, train).f_dropout(self.dropout, train)?;
        let embedding16 = x.apply(&self.fc2);
        let x = embedding16.f_relu()?;
        let heads = self.heads.iter().map(|head| x.apply(head)).collect();
        Ok(HeadOutput { heads, embedding512, embedding16 })
    }

    /// Sets the bias of an output's last layer, if a good initial value is known.
    pub(super) fn set_bias(&mut self, head_idx: usize, value: f64) -> Result<(), TchError> {
        if let Some(bias) = self.heads.get_mut(head_idx).and_then(|head| head.bs.as_mut()) {
            let _ = tch::no_grad(|| bias.f_fill_(value))?;
        }
        Ok(())
    }
}
