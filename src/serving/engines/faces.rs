//! The engines of networks that read faces.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    nn::{AgeGender, AgeGenderOutput, BUCKETS, DlibResNet},
    serving::{Engine, EngineError, ImageOutput, Input},
};

/// Heads: age, gender.
pub(super) struct AgeGenderEngine {
    pub(super) networks: AgeGender,
}

impl Engine for AgeGenderEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let outputs = self.networks.infer(&squares(batch)?)?;
        let output = |output: AgeGenderOutput| ImageOutput {
            spreads: vec![Some(output.age_spread), None],
            ..ImageOutput::new(vec![vec![output.age], output.gender.to_vec()], BTreeMap::new())
        };
        Ok(outputs.into_iter().map(output).collect())
    }

    /// Every face is run twice.
    fn max_batch(&self) -> usize {
        BUCKETS[BUCKETS.len() - 1] / 2
    }
}

/// No heads, one embedding.
pub(super) struct DescriptorEngine {
    pub(super) network: DlibResNet,
    pub(super) layer: String,
}

impl Engine for DescriptorEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let outputs = self.network.infer(&squares(batch)?)?;
        let output = |values| ImageOutput::new(Vec::new(), BTreeMap::from([(self.layer.clone(), values)]));
        Ok(outputs.into_iter().map(output).collect())
    }
}

fn squares(batch: &[Arc<Input>]) -> Result<Vec<&[u8]>, EngineError> {
    batch.iter().map(|input| input.square()).collect()
}
