//! Registers a version: its weights are read, its network is run once, and what it answered is kept with it.

use std::{collections::BTreeMap, path::PathBuf};

use super::{AppError, Idempotent, Models, models::engine_source};
use crate::{
    digest::Digest,
    names::{EmbeddingSpace, ModelId, VersionName},
    nn::{GOLDEN_SEED, Golden, NnError, PublishedNetwork, TensorData, parse_weights, read_file},
    proto::v1,
    registry::{NewVersion, Origin, Reads, Version},
    serving::{ServeError, ServingPool},
    training::TrainingError,
};

/// Where the faces of a network that reads faces come from, and what its answers are paired with.
#[derive(Clone, Debug)]
pub(super) struct FacesFrom {
    /// The detector that finds the faces.
    pub(super) detector: VersionName,
    /// The space of the embedding that its answers are paired with.
    pub(super) space: Option<EmbeddingSpace>,
}

/// The tensors of a published network's files, and the files' SHA-256 by name.
pub(super) struct PublishedWeights {
    pub(super) tensors: Vec<TensorData>,
    pub(super) digests: BTreeMap<String, String>,
}

/// The published network that an architecture names.
pub(super) fn published_network(architecture: v1::Architecture) -> Option<PublishedNetwork> {
    match architecture {
        v1::Architecture::Mtcnn => Some(PublishedNetwork::Mtcnn),
        v1::Architecture::DlibAgeGender => Some(PublishedNetwork::DlibAgeGender),
        v1::Architecture::DlibFaceDescriptor => Some(PublishedNetwork::DlibFaceDescriptor),
        v1::Architecture::Unspecified
        | v1::Architecture::Resnet18
        | v1::Architecture::Resnet34
        | v1::Architecture::Resnet50 => None,
    }
}

/// The weights of a network's files, each where `place` says.
///
/// # Errors
/// When one that is needed is not there, or is no weights file.
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
        // Read once: what is registered are the bytes whose digest is known.
        let bytes = read_file(&path)?;
        weights.digests.insert(file.name.to_owned(), Digest::of(&bytes).to_string());
        let tensors = parse_weights(&path, &bytes)?;
        let prefixed = tensors.into_iter().map(|t| TensorData { name: format!("{}{}", file.prefix, t.name), ..t });
        weights.tensors.extend(prefixed);
    }
    Ok(weights)
}

/// A version with nothing but what every one has.
pub(super) fn new_version(
    model: ModelId,
    architecture: v1::Architecture,
    reads: Reads,
    tensors: Vec<TensorData>,
    origin: Origin,
) -> NewVersion {
    NewVersion {
        model,
        architecture,
        heads: Vec::new(),
        reads,
        tensors,
        calibrations: Vec::new(),
        embedding_layers: Vec::new(),
        metrics: BTreeMap::new(),
        golden: None,
        thresholds: None,
        identity: None,
        origin,
    }
}

/// Runs a version once, so that its golden outputs are known.
pub(super) async fn verified(serving: &ServingPool, mut new: NewVersion) -> Result<NewVersion, AppError> {
    let source = engine_source(&new.unregistered()?, new.tensors.clone());
    let probed = serving.probe(source, GOLDEN_SEED).await;
    let outputs = probed.map_err(|error| match error {
        // Of a file that its caller named, not of a version that is stored.
        ServeError::WeightsMismatch { detail, .. } => AppError::Nn(NnError::WeightsMismatch { detail }),
        other => other.into(),
    })?;
    if let Some(at) = outputs.iter().position(|output| !output.is_finite()) {
        // It would answer nothing, and could not be distinguished from damage later.
        let detail = format!("they answer {} where a number should be (output {at} of a test picture)", outputs[at]);
        return Err(AppError::Nn(NnError::WeightsMismatch { detail }));
    }
    new.golden = Some(Golden::new(outputs));
    Ok(new)
}

/// Registers a version.
pub(super) async fn register(
    models: &Models,
    once: Idempotent,
    prepare: impl Future<Output = Result<NewVersion, AppError>>,
) -> Result<v1::ModelVersion, AppError> {
    let committing = models.clone();
    let commit = move |new: NewVersion, once: &Idempotent| {
        let describe = |version: &Version| committing.with_state(&version.name, version.describe());
        let version = committing.registry().register(new, |version| once.remember(&describe(version)))?;
        // Within the commit: a caller that leaves must not come between the two.
        committing.refresh_now()?;
        Ok(describe(&version))
    };
    Ok(once.run(models.registry().store(), prepare, commit).await?.into_inner())
}
