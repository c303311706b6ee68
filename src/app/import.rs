//! Registers a weights file as a version.

use std::sync::Arc;

use super::{App, AppError, Idempotent, blocking, detached};
use crate::{
    nn::{NnError, read_weights},
    proto::{
        store::{Golden, Preprocessing},
        v1,
    },
    registry::{ModelId, NewVersion},
    serving::ServeError,
    training::{Head, architecture},
};

/// The seed of an import's golden input.
const GOLDEN_SEED: u64 = 1;
/// The largest difference of a golden output on another machine, relative to the largest output (at least 1).
const GOLDEN_TOLERANCE: f32 = 1e-3;

impl App {
    /// Registers the weights of a file under the roots; refuses tensors that do not fit the network, by name.
    ///
    /// # Errors
    /// When the path leads outside the roots, the file is no weights file, or it does not fit the heads.
    pub async fn import_version(
        &self,
        model: ModelId,
        request: v1::ImportModelVersionRequest,
        once: Idempotent,
    ) -> Result<v1::ModelVersion, AppError> {
        let registry = Arc::clone(self.models.registry());
        let earlier = once.clone();
        if let Some(answer) = blocking(move || earlier.earlier_answer(registry.store())).await? {
            return Ok(answer);
        }
        let heads = Head::parse_all("heads", &request.heads)?;
        if let Some(open) = heads.iter().find(|h| h.has_open_labels()) {
            return Err(AppError::field("heads", format!("the labels of {:?} must be given for an import", open.name)));
        }
        let image_size_px = u32::try_from(request.image_size_px)
            .ok()
            .filter(|px| (32..=512).contains(px) && px % 32 == 0)
            .ok_or_else(|| AppError::field("image_size_px", "must be 32 to 512 and a multiple of 32"))?;
        architecture("architecture", request.architecture)?;
        let (roots, path) = (self.roots.clone(), request.weights_path.clone());
        // One at a time: a file is held in memory whole, and more than once while it is read.
        let place = Arc::clone(&self.imports).acquire_owned().await.map_err(|_| AppError::Stopping)?;
        let (tensors, _place) = blocking(move || {
            let tensors = read_weights(&roots.resolve("weights_path", &path)?)?;
            Ok((tensors, place))
        })
        .await?;
        let new = NewVersion {
            model,
            architecture: request.architecture(),
            heads: heads.iter().map(Head::to_proto).collect(),
            preprocessing: preprocessing(image_size_px),
            tensors,
            calibrations: Vec::new(),
            embedding_layers: super::embedding_layers(),
            metrics: std::collections::BTreeMap::new(),
            golden: None,
            training_run: String::new(),
            recipe: None,
            data_fingerprint: String::new(),
            imported_from: request.weights_path,
            parent_version: String::new(),
        };
        self.register_verified(new, once).await
    }

    /// Runs a version once, so that its golden outputs are known, and registers it.
    async fn register_verified(&self, mut new: NewVersion, once: Idempotent) -> Result<v1::ModelVersion, AppError> {
        let registry = Arc::clone(self.models.registry());
        let (unregistered, tensors) = (new.unregistered(), new.tensors.clone());
        let probed = self.serving.probe(unregistered, tensors, GOLDEN_SEED).await;
        let outputs = probed.map_err(|error| match error {
            // Of a file that its caller named, not of a version that is stored.
            ServeError::WeightsMismatch { detail, .. } => AppError::Nn(NnError::WeightsMismatch { detail }),
            other => other.into(),
        })?;
        let largest = outputs.iter().fold(1.0_f32, |largest, output| largest.max(output.abs()));
        new.golden = Some(Golden { input_seed: GOLDEN_SEED, outputs, tolerance: GOLDEN_TOLERANCE * largest });
        let models = self.models.clone();
        detached(async move {
            let of_answer = models.clone();
            let answer: v1::ModelVersion = blocking(move || {
                once.once(registry.store(), || {
                    let record = registry.register(new, |record| once.remember(&of_answer.version_to_proto(record)))?;
                    Ok(of_answer.version_to_proto(&record))
                })
            })
            .await?;
            models.refresh().await?;
            Ok(answer)
        })
        .await
    }
}

/// The preprocessing of networks that start from ImageNet's statistics, which all of this project's do.
fn preprocessing(image_size_px: u32) -> Preprocessing {
    Preprocessing {
        image_size_px,
        mean: crate::nn::IMAGENET_MEAN.to_vec(),
        std: crate::nn::IMAGENET_STD.to_vec(),
        min_side_px: crate::nn::MIN_SIDE_PX,
    }
}
