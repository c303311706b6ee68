//! Registers a version: reads its weights, runs its network once, and stores the outputs with it.

use std::{collections::BTreeMap, path::PathBuf};

use super::{AppError, Idempotent, Models, models::engine_source};
use crate::{
    digest::Digest,
    names::{EmbeddingSpace, VersionName},
    nn::{GOLDEN_SEED, Golden, NnError, PublishedNetwork, TensorData, parse_weights, read_file},
    proto::v1,
    registry::{NewVersion, Version},
    serving::{ServeError, ServingPool},
    training::TrainingError,
};

/// The versions that a network reading faces depends on.
#[derive(Clone, Debug)]
pub(super) struct FacesFrom {
    /// The detector.
    pub(super) detector: VersionName,
    /// The space of the embedding paired with its answers.
    pub(super) space: Option<EmbeddingSpace>,
}

/// The tensors of a published network's files, and the files' SHA-256 digests by name.
pub(super) struct PublishedWeights {
    pub(super) tensors: Vec<TensorData>,
    pub(super) digests: BTreeMap<String, String>,
}

/// Reads the weights of a network's files; `place` returns the path of each.
///
/// # Errors
/// When a required file is missing, or is not a weights file.
pub(super) fn read_files(
    network: PublishedNetwork,
    place: impl Fn(&str) -> Result<PathBuf, AppError>,
) -> Result<PublishedWeights, AppError> {
    let mut weights = PublishedWeights { tensors: Vec::new(), digests: BTreeMap::new() };
    for file in network.files() {
        let path = match place(file.name) {
            Err(AppError::Training(TrainingError::FileNotFound { .. })) if file.is_optional => continue,
            path => path?,
        };
        if file.is_optional && !path.exists() {
            continue;
        }
        // Read only once, so that the registered bytes are those of the digest.
        let bytes = read_file(&path)?;
        weights.digests.insert(file.name.to_owned(), Digest::of(&bytes).to_string());
        let tensors = parse_weights(&path, &bytes)?;
        let prefixed = tensors.into_iter().map(|t| TensorData { name: format!("{}{}", file.prefix, t.name), ..t });
        weights.tensors.extend(prefixed);
    }
    Ok(weights)
}

/// Runs a version once and stores its golden outputs in it.
pub(super) async fn verified(serving: &ServingPool, mut new: NewVersion) -> Result<NewVersion, AppError> {
    let source = engine_source(&new.unregistered()?, new.tensors.clone());
    let probed = serving.probe(source, GOLDEN_SEED).await;
    let outputs = probed.map_err(|error| match error {
        // The caller named this file; the error is not about a stored version.
        ServeError::WeightsMismatch { detail, .. } => AppError::Nn(NnError::WeightsMismatch { detail }),
        other => other.into(),
    })?;
    if let Some(at) = outputs.iter().position(|output| !output.is_finite()) {
        // Such a version would answer nothing, and later look like damaged data.
        let detail = format!("output {at} for a test image is {}, not a finite number", outputs[at]);
        return Err(AppError::Nn(NnError::WeightsMismatch { detail }));
    }
    new.golden = Some(Golden::new(outputs));
    Ok(new)
}

/// Prepares a version and registers it.
pub(super) async fn register(
    models: &Models,
    once: Idempotent,
    prepare: impl Future<Output = Result<NewVersion, AppError>>,
) -> Result<v1::ModelVersion, AppError> {
    let committing = models.clone();
    let commit = move |new: NewVersion, once: &Idempotent| {
        let describe = |version: &Version| committing.with_state(&version.name, version.describe());
        let version = committing.registry().register(new, |version| once.remember(&describe(version)))?;
        // Within the commit, so that a caller that leaves cannot separate the two.
        committing.refresh_now()?;
        Ok(describe(&version))
    };
    Ok(once.run(models.registry().store(), prepare, commit).await?.into_inner())
}
