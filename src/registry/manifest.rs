//! A version's manifest: what it is made from, and its digest.

use std::{collections::BTreeMap, time::SystemTime};

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{RegistryError, name_of};
use crate::{
    names::{ModelId, ModelRef, VersionName},
    nn::{Dtype, TensorData},
    proto::{
        store::{EmbeddingLayer, Golden, HeadCalibration, Preprocessing, TensorRef, VersionRecord},
        v1,
    },
    store::Digest,
};

/// What becomes a version.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The model; made if it does not exist.
    pub model: ModelId,
    /// The body.
    pub architecture: v1::Architecture,
    /// With classification labels resolved.
    pub heads: Vec<v1::Head>,
    /// Pixels to the network's input.
    pub preprocessing: Preprocessing,
    /// Every parameter and buffer.
    pub tensors: Vec<TensorData>,
    /// The heads' intervals.
    pub calibrations: Vec<HeadCalibration>,
    /// Layers that can be compared, and their sizes.
    pub embedding_layers: Vec<EmbeddingLayer>,
    /// On the validation part.
    pub metrics: BTreeMap<String, f64>,
    /// What it answers to a known input.
    pub golden: Option<Golden>,
    /// What a face must reach to be answered, for a version that reads faces.
    pub thresholds: Option<v1::QualityThresholds>,
    /// What the scores of its embedding mean, where that was measured.
    pub identity: Option<v1::IdentityCalibration>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a version comes from; what does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// trainingRuns/{id}.
    pub training_run: String,
    /// How it was trained.
    pub recipe: Option<v1::Recipe>,
    /// Of the data it was trained on.
    pub data_fingerprint: String,
    /// The file it was imported from.
    pub imported_from: String,
    /// The version it started from.
    pub parent_version: String,
    /// An SPDX expression.
    pub licence: String,
    /// Where the weights were published.
    pub source: String,
    /// The entry and revision of the published weights that the server registered it as, of itself.
    pub published_as: String,
}

impl NewVersion {
    /// The manifest with this number and these tensors, digest included.
    pub(super) fn manifest(&self, number: u64, tensors: Vec<TensorRef>) -> VersionRecord {
        let mut record = VersionRecord { number, tensors, ..self.unregistered() };
        record.create_time = Some(SystemTime::now().into());
        record.digest = manifest_digest(&record);
        record
    }

    /// The manifest before it has a number: enough to run its network.
    #[must_use]
    pub fn unregistered(&self) -> VersionRecord {
        VersionRecord {
            model: self.model.to_string(),
            number: 0,
            create_time: None,
            architecture: self.architecture.into(),
            heads: self.heads.clone(),
            preprocessing: Some(self.preprocessing.clone()),
            tensors: Vec::new(),
            calibrations: self.calibrations.clone(),
            embedding_layers: self.embedding_layers.clone(),
            metrics: self.metrics.clone(),
            golden: self.golden.clone(),
            training_run: self.origin.training_run.clone(),
            recipe: self.origin.recipe.clone(),
            data_fingerprint: self.origin.data_fingerprint.clone(),
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            imported_from: self.origin.imported_from.clone(),
            parent_version: self.origin.parent_version.clone(),
            licence: self.origin.licence.clone(),
            source: self.origin.source.clone(),
            published_as: self.origin.published_as.clone(),
            thresholds: self.thresholds,
            identity: self.identity.clone(),
            digest: Vec::new(),
        }
    }
}

/// SHA-256 over the manifest with an empty digest.
pub(super) fn manifest_digest(record: &VersionRecord) -> Vec<u8> {
    let bare = VersionRecord { digest: Vec::new(), ..record.clone() };
    Sha256::digest(bare.encode_to_vec()).to_vec()
}

/// The versions that a version answers with: the detector that finds its faces, the one whose embedding its answers are
/// paired with.
///
/// # Errors
/// When its manifest names what is no version.
pub fn partners(record: &VersionRecord) -> Result<Vec<VersionName>, RegistryError> {
    let Some(chip) = record.preprocessing.as_ref().and_then(|p| p.face_chip.as_ref()) else { return Ok(Vec::new()) };
    let embedder = chip.embedding_space.split('#').next().unwrap_or_default();
    let named = [chip.detector.as_str(), embedder].into_iter().filter(|name| !name.is_empty());
    named
        .map(|name| match ModelRef::parse("partner", name) {
            Ok(ModelRef::Version(version)) => Ok(version),
            Ok(ModelRef::Alias { .. }) | Err(_) => Err(RegistryError::CorruptVersion {
                version: name_of(record),
                detail: format!("it works with {name:?}, which is no version"),
            }),
        })
        .collect()
}

/// Bytes of a version's tensors.
#[must_use]
pub fn weight_bytes(record: &VersionRecord) -> u64 {
    let bytes_of = |tensor: &TensorRef| {
        let width: u64 = if tensor.dtype == "i64" { 8 } else { 4 };
        width * tensor.shape.iter().map(|d| u64::try_from(*d).unwrap_or(0)).product::<u64>()
    };
    record.tensors.iter().map(bytes_of).sum()
}

/// A tensor's entry in the manifest.
pub(super) fn tensor_ref(tensor: &TensorData, blob: &Digest) -> TensorRef {
    TensorRef {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: match tensor.dtype {
            Dtype::F32 => "f32",
            Dtype::I64 => "i64",
        }
        .to_owned(),
        blob: blob.as_bytes().to_vec(),
    }
}

/// The element type that a manifest names.
pub(super) fn dtype(version: &VersionName, tensor: &TensorRef) -> Result<Dtype, RegistryError> {
    match tensor.dtype.as_str() {
        "f32" => Ok(Dtype::F32),
        "i64" => Ok(Dtype::I64),
        other => Err(RegistryError::CorruptVersion {
            version: version.clone(),
            detail: format!("tensor {} has the unknown element type {other:?}", tensor.name),
        }),
    }
}
