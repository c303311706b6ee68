//! The engine of residual networks, which turns whole photos into heads and embeddings.

use std::sync::Arc;

use crate::{
    nn::{InferenceNetwork, RawOutput},
    serving::{Engine, EngineError, ImageOutput, Input},
};

/// A network that this project trained.
pub(super) struct ResidualEngine {
    pub(super) network: InferenceNetwork,
    pub(super) embedding_layers: Vec<String>,
    pub(super) side_px: u32,
}

impl Engine for ResidualEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let rgb = batch.iter().map(|input| input.square()).collect::<Result<Vec<_>, _>>()?;
        let outputs = self.network.infer(&rgb, self.side_px)?;
        outputs.into_iter().map(|output| self.output(output)).collect()
    }
}

impl ResidualEngine {
    /// Keeps only the layers that the version offers for comparison.
    fn output(&self, mut raw: RawOutput) -> Result<ImageOutput, EngineError> {
        let mut embedding = |layer: &String| match raw.embeddings.remove(layer) {
            Some(vector) => Ok((layer.clone(), vector)),
            None => Err(EngineError::Failed(format!("the network has no layer {layer}"))),
        };
        let embeddings = self.embedding_layers.iter().map(&mut embedding).collect::<Result<_, _>>()?;
        Ok(ImageOutput::new(raw.heads, embeddings))
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;
    use crate::{
        nn::{Device, Golden, Network, NetworkKind},
        serving::{
            EngineLoader, EngineSource, InputKind, Priority, ServeError, ServingPool, ServingSettings,
            TorchEngineLoader, golden, testing::engine_source,
        },
    };

    const SIDE_PX: u32 = 32;

    fn source() -> EngineSource {
        let source = engine_source("m", 1, SIDE_PX);
        let NetworkKind::Residual { spec, .. } = &source.network else { panic!() };
        let tensors = Network::new(spec, Device::Cpu).export().unwrap();
        EngineSource { tensors, golden: None, ..source }
    }

    #[tokio::test]
    async fn a_real_network_through_the_pool() {
        let settings = ServingSettings { max_batch: 4, n_threads: 1, ..Default::default() };
        let pool = ServingPool::start(settings, Arc::new(TorchEngineLoader::new("cpu").unwrap())).unwrap();
        let mut source = source();
        let v1 = source.version.clone();
        let outputs = pool.probe(source.clone(), 7).await.unwrap();
        assert_eq!(outputs.len(), 3);
        source.golden = Some(Golden { input_seed: 7, outputs, tolerance: 1e-4 });
        let mut tampered = source.clone();
        let bias = tampered.tensors.iter_mut().rfind(|t| t.name.ends_with("bias")).unwrap();
        let mut bytes = bias.bytes.to_vec();
        bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 0xff);
        bytes.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = 0x41);
        bias.bytes = bytes.into();
        let refused = pool.load(tampered).await.unwrap_err();
        assert!(matches!(&refused, ServeError::GoldenMismatch { version, .. } if *version == v1), "{refused}");

        pool.load(source).await.unwrap();
        let image = |seed| Arc::new(golden::input(&InputKind::Square { side_px: SIDE_PX }, seed));
        let together = join_all((0..6).map(|seed| pool.run(&v1, image(seed), None, Priority::Normal))).await;
        for (seed, together) in (0..6).zip(together) {
            let (alone, together) =
                (pool.run(&v1, image(seed), None, Priority::Normal).await.unwrap().output, together.unwrap().output);
            let layers: Vec<_> = alone.embeddings.iter().map(|(name, v)| (name.as_str(), v.len())).collect();
            assert_eq!(layers, [("embedding16", 16), ("embedding512", 512)]);
            for (a, b) in alone.heads.concat().iter().zip(together.heads.concat()) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        let loader = TorchEngineLoader::new("cpu").unwrap();
        let refused = |spoil: fn(&mut EngineSource)| {
            let mut source = source();
            spoil(&mut source);
            loader.load(&source).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(refused(|s| drop(s.tensors.pop())).contains("do not fit"));
        let photo = |s: &mut EngineSource| s.input = InputKind::Photo(crate::vision::DetectorSettings::default());
        assert!(refused(photo).contains("does not read"));
        assert!(TorchEngineLoader::new("cuda:4096").is_err());
    }
}
