//! Engines over libtorch.

use std::sync::Arc;

use super::{
    Engine, EngineError, EngineLoader, EngineSource, ImageOutput, Input,
    detector_engine::{AlignmentBox, DetectorEngine, cascade_settings},
    face_engines::{AgeGenderEngine, DescriptorEngine},
    shape::shape_predictor,
};
use crate::{
    nn::{
        self, AgeGender, Architecture, Device, DlibResNet, DlibResNetConfig, HeadKind, InferenceNetwork, Mtcnn,
        NetworkSpec, NnError, RawOutput, SHAPE_PREFIX, TensorData,
    },
    proto::{
        store::{Preprocessing, VersionRecord},
        v1::{self, head},
    },
};

/// Builds versions' networks on one device.
#[derive(Clone, Debug)]
pub struct TorchEngineLoader {
    device: Device,
}

impl TorchEngineLoader {
    /// On `auto`, `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`NnError::DeviceUnavailable`] when there is no such device; there is no falling back to another.
    pub fn new(device: &str) -> Result<Self, NnError> {
        Ok(Self { device: Device::resolve(device)? })
    }

    /// The device that was resolved.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }
}

impl EngineLoader for TorchEngineLoader {
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError> {
        let record = &source.record;
        let missing = || EngineError::Failed("the manifest has no preprocessing".to_owned());
        let preprocessing = record.preprocessing.as_ref().ok_or_else(missing)?;
        match record.architecture() {
            v1::Architecture::Mtcnn => return self.detector(&source.tensors, preprocessing),
            v1::Architecture::DlibAgeGender => {
                let networks = AgeGender::load(&source.tensors, self.device).map_err(engine_error)?;
                return Ok(Box::new(AgeGenderEngine { networks }));
            }
            v1::Architecture::DlibFaceDescriptor => {
                let config = DlibResNetConfig::face_descriptor();
                let network = DlibResNet::load(&config, &source.tensors, self.device).map_err(engine_error)?;
                let layer = record.embedding_layers.first().map(|layer| layer.layer.clone()).unwrap_or_default();
                return Ok(Box::new(DescriptorEngine { network, layer }));
            }
            _ => {}
        }
        let spec = network_spec(record).map_err(EngineError::Failed)?;
        let (mean, std) = normalisation(preprocessing).map_err(EngineError::Failed)?;
        let network = InferenceNetwork::load(&spec, &source.tensors, mean, std, self.device).map_err(engine_error)?;
        let embedding_layers = record.embedding_layers.iter().map(|layer| layer.layer.clone()).collect();
        Ok(Box::new(TorchEngine { network, embedding_layers, side_px: preprocessing.image_size_px }))
    }

    fn enter_thread(&self, n_threads: usize) {
        nn::set_num_threads(n_threads);
    }
}

impl TorchEngineLoader {
    fn detector(&self, tensors: &[TensorData], preprocessing: &Preprocessing) -> Result<Box<dyn Engine>, EngineError> {
        let missing = || EngineError::Failed("the manifest does not say how faces are looked for".to_owned());
        let detection = preprocessing.detection.as_ref().ok_or_else(missing)?;
        let (shape, networks): (Vec<_>, Vec<_>) =
            tensors.iter().cloned().partition(|tensor| tensor.name.starts_with(SHAPE_PREFIX));
        let alignment = shape_predictor(&shape)?.zip(AlignmentBox::of(detection));
        if alignment.is_none() && !detection.alignment_box.is_empty() {
            // Whoever cuts faces out goes by the manifest: points of another kind would be taken for the predictor's.
            let detail = "the manifest gives a predictor its box, and there is no predictor or no box of three numbers";
            return Err(EngineError::Failed(detail.to_owned()));
        }
        let networks = Mtcnn::load(&networks, self.device).map_err(engine_error)?;
        Ok(Box::new(DetectorEngine { networks, settings: cascade_settings(detection), alignment }))
    }
}

struct TorchEngine {
    network: InferenceNetwork,
    embedding_layers: Vec<String>,
    side_px: u32,
}

impl Engine for TorchEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let rgb = squares(batch)?;
        let outputs = self.network.infer(&rgb, self.side_px).map_err(engine_error)?;
        outputs.into_iter().map(|output| self.output(output)).collect()
    }
}

impl TorchEngine {
    /// With the layers that the version offers for comparison, and no others.
    fn output(&self, mut raw: RawOutput) -> Result<ImageOutput, EngineError> {
        let mut embedding = |layer: &String| match raw.embeddings.remove(layer) {
            Some(vector) => Ok((layer.clone(), vector)),
            None => Err(EngineError::Failed(format!("the network has no layer {layer}"))),
        };
        let embeddings = self.embedding_layers.iter().map(&mut embedding).collect::<Result<_, _>>()?;
        Ok(ImageOutput::new(raw.heads, embeddings))
    }
}

/// The pixels of squares.
pub(super) fn squares(batch: &[Arc<Input>]) -> Result<Vec<&[u8]>, EngineError> {
    let squares = batch.iter().map(|input| match &**input {
        Input::Square(pixels) => Ok(&*pixels.rgb),
        Input::Photo(_) => Err(EngineError::Failed("a photo to find faces in came to a network of squares".to_owned())),
    });
    squares.collect()
}

/// The network that a manifest describes.
fn network_spec(record: &VersionRecord) -> Result<NetworkSpec, String> {
    let architecture = match record.architecture() {
        v1::Architecture::Resnet18 => Architecture::ResNet18,
        v1::Architecture::Resnet34 => Architecture::ResNet34,
        v1::Architecture::Resnet50 => Architecture::ResNet50,
        v1::Architecture::Unspecified
        | v1::Architecture::Mtcnn
        | v1::Architecture::DlibAgeGender
        | v1::Architecture::DlibFaceDescriptor => {
            return Err(format!("the manifest's architecture {} is not known", record.architecture));
        }
    };
    let head = |head: &v1::Head| match &head.kind {
        Some(head::Kind::Regression(_)) => Ok((head.name.clone(), HeadKind::Regression)),
        Some(head::Kind::Classification(kind)) => {
            Ok((head.name.clone(), HeadKind::Classification { n_labels: kind.labels.len() }))
        }
        None => Err(format!("the manifest's head {} has no kind", head.name)),
    };
    // Dropout is idle in a network that only answers.
    Ok(NetworkSpec { architecture, heads: record.heads.iter().map(head).collect::<Result<_, _>>()?, dropout: 0.0 })
}

fn normalisation(preprocessing: &Preprocessing) -> Result<([f32; 3], [f32; 3]), String> {
    let three = |what: &str, values: &[f32]| {
        <[f32; 3]>::try_from(values).map_err(|_| format!("the manifest's {what} has {} values, not 3", values.len()))
    };
    let (mean, std) = (three("mean", &preprocessing.mean)?, three("std", &preprocessing.std)?);
    if !std.iter().all(|&s| s.is_finite() && s > 0.0) {
        return Err(format!("the manifest's std {std:?} is not above zero"));
    }
    Ok((mean, std))
}

pub(super) fn engine_error(error: NnError) -> EngineError {
    match error {
        NnError::OutOfMemory { detail } => EngineError::OutOfMemory(detail),
        NnError::WeightsMismatch { detail } => EngineError::WeightsMismatch(detail),
        other => EngineError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;
    use crate::{
        nn::Network,
        proto::store::Golden,
        serving::{
            ServeError, ServingPool, ServingSettings, golden_pixels, predictions,
            testing::{engine_source, version_record},
        },
    };

    const SIDE_PX: u32 = 32;
    const V1: &str = "models/m/versions/1";

    fn source() -> EngineSource {
        let mut record = version_record("m", 1, SIDE_PX);
        record.golden = None;
        let tensors = Network::new(&network_spec(&record).unwrap(), Device::Cpu).export().unwrap();
        EngineSource { tensors, ..engine_source(record) }
    }

    #[tokio::test]
    async fn a_real_network_through_the_pool() {
        let settings = ServingSettings { max_batch: 4, n_threads: 1, ..Default::default() };
        let pool = ServingPool::start(settings, Arc::new(TorchEngineLoader::new("cpu").unwrap())).unwrap();
        let mut source = source();
        let outputs = pool.probe(source.record.clone(), source.tensors.clone(), 7).await.unwrap();
        assert_eq!(outputs.len(), 3);
        source.record.golden = Some(Golden { input_seed: 7, outputs, tolerance: 1e-4 });
        let mut tampered = source.clone();
        let bias = tampered.tensors.iter_mut().rfind(|t| t.name.ends_with("bias")).unwrap();
        let mut bytes = bias.bytes.to_vec();
        bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 0xff);
        bytes.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = 0x41);
        bias.bytes = bytes.into();
        let refused = pool.load(V1, tampered).await.unwrap_err();
        assert!(matches!(&refused, ServeError::GoldenMismatch { version, .. } if version == V1), "{refused}");

        let record = source.record.clone();
        pool.load(V1, source).await.unwrap();
        let image = |seed| Arc::new(Input::Square(golden_pixels(seed, SIDE_PX)));
        let together = join_all((0..6).map(|seed| pool.run(V1, image(seed), None))).await;
        for (seed, together) in (0..6).zip(together) {
            let (alone, together) = (pool.run(V1, image(seed), None).await.unwrap().output, together.unwrap().output);
            let layers: Vec<_> = alone.embeddings.iter().map(|(name, v)| (name.as_str(), v.len())).collect();
            assert_eq!(layers, [("embedding16", 16), ("embedding512", 512)]);
            for (a, b) in alone.heads.concat().iter().zip(together.heads.concat()) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
            assert_eq!(predictions(&record, &together).unwrap().len(), 2);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let loader = TorchEngineLoader::new("cpu").unwrap();
        let refused = |spoil: fn(&mut EngineSource)| {
            let mut source = source();
            spoil(&mut source);
            loader.load(&source).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(refused(|s| drop(s.tensors.pop())).contains("do not fit"));
        assert!(refused(|s| s.record.architecture = 99).contains("architecture"));
        assert!(refused(|s| s.record.heads[0].kind = None).contains("age"));
        assert!(refused(|s| s.record.preprocessing = None).contains("preprocessing"));
        assert!(refused(|s| s.record.preprocessing.as_mut().unwrap().std.truncate(2)).contains("2 values"));
        assert!(refused(|s| s.record.preprocessing.as_mut().unwrap().std[0] = 0.0).contains("above zero"));
        assert!(TorchEngineLoader::new("cuda:4096").is_err());
    }
}
