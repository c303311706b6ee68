//! Engines over libtorch, one file per kind of network.

mod detector;
mod faces;
mod residual;
mod shape;

use detector::DetectorEngine;
use faces::{AgeGenderEngine, DescriptorEngine};
use residual::ResidualEngine;

use super::{Engine, EngineError, EngineLoader, EngineSource, InputKind};
use crate::nn::{self, Device, NetworkKind, NnError, PublishedNetwork};

/// Builds versions' networks on one device.
#[derive(Clone, Debug)]
pub(crate) struct TorchEngineLoader {
    device: Device,
}

impl TorchEngineLoader {
    /// Opens a device: `auto`, `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`NnError::DeviceUnavailable`] when it does not exist; there is no fallback to another.
    pub(crate) fn new(device: &str) -> Result<Self, NnError> {
        Ok(Self { device: Device::resolve(device)? })
    }
}

impl EngineLoader for TorchEngineLoader {
    fn load(&self, source: &EngineSource) -> Result<Box<dyn Engine>, EngineError> {
        let EngineSource { network, input, embedding_layers, tensors, .. } = source;
        Ok(match (network, input) {
            (NetworkKind::Residual { spec, mean, std }, InputKind::Square { side_px }) => {
                let network = nn::InferenceNetwork::load(spec, tensors, *mean, *std, self.device)?;
                Box::new(ResidualEngine { network, embedding_layers: embedding_layers.clone(), side_px: *side_px })
            }
            (NetworkKind::Published(PublishedNetwork::DlibAgeGender), InputKind::Square { .. }) => {
                Box::new(AgeGenderEngine { networks: nn::AgeGender::load(tensors, self.device)? })
            }
            (NetworkKind::Published(PublishedNetwork::DlibFaceDescriptor), InputKind::Square { .. }) => {
                let config = nn::DlibResNetConfig::face_descriptor();
                let network = nn::DlibResNet::load(&config, tensors, self.device)?;
                let layer = embedding_layers.first().cloned().unwrap_or_default();
                Box::new(DescriptorEngine { network, layer })
            }
            (NetworkKind::Published(PublishedNetwork::Mtcnn), InputKind::Photo(settings)) => {
                Box::new(DetectorEngine::load(settings, tensors, self.device)?)
            }
            (network, input) => {
                return Err(EngineError::Failed(format!("the network {network:?} does not read {input:?}")));
            }
        })
    }

    fn enter_thread(&self, n_threads: usize) {
        nn::set_num_threads(n_threads);
    }
}
