//! A version's manifest as it is stored: what goes into it, and its digest.

use std::{collections::BTreeMap, time::SystemTime};

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use super::{Reads, RegistryError, Version};
use crate::{
    names::{ModelId, VersionName},
    nn::{Dtype, Golden, TensorData},
    proto::{
        store::{self, HeadCalibration, TensorRef, VersionRecord},
        v1,
    },
    store::Digest,
};

/// What becomes a version.
#[derive(Clone, Debug)]
pub(crate) struct NewVersion {
    /// The model; made if it does not exist.
    pub model: ModelId,
    /// The kind of network.
    pub architecture: v1::Architecture,
    /// Its heads, the labels of classifications resolved.
    pub heads: Vec<v1::Head>,
    /// What it reads.
    pub reads: Reads,
    /// Every parameter and buffer of its network.
    pub tensors: Vec<TensorData>,
    /// The intervals of its heads.
    pub calibrations: Vec<HeadCalibration>,
    /// Layers whose outputs can be compared, and their sizes.
    pub embedding_layers: Vec<store::EmbeddingLayer>,
    /// Its metrics on the validation part.
    pub metrics: BTreeMap<String, f64>,
    /// What its network answers to a known input.
    pub golden: Option<Golden>,
    /// What a face must reach to be answered; of a version that reads faces.
    pub thresholds: Option<v1::QualityThresholds>,
    /// What the scores of its embedding mean, where that was measured.
    pub identity: Option<v1::IdentityCalibration>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a version comes from; what does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origin {
    /// trainingRuns/{id}.
    pub training_run: String,
    /// How it was trained.
    pub recipe: Option<v1::Recipe>,
    /// Names the data that it was trained on.
    pub data_fingerprint: String,
    /// The file it was imported from.
    pub imported_from: String,
    /// The version it started from.
    pub parent_version: Option<VersionName>,
    /// An SPDX expression.
    pub licence: String,
    /// Where the weights were published.
    pub source: String,
    /// The entry and revision of the published weights, if the server registered it by itself.
    pub published_as: String,
}

impl Origin {
    pub(super) fn of(record: &VersionRecord) -> Self {
        Self {
            training_run: record.training_run.clone(),
            recipe: record.recipe.clone(),
            data_fingerprint: record.data_fingerprint.clone(),
            imported_from: record.imported_from.clone(),
            parent_version: VersionName::parse("parent_version", &record.parent_version).ok(),
            licence: record.licence.clone(),
            source: record.source.clone(),
            published_as: record.published_as.clone(),
        }
    }
}

impl NewVersion {
    /// The version before it has a number: enough to run its network.
    ///
    /// # Errors
    /// [`RegistryError::UnsupportedVersion`] when its parts do not fit together.
    pub(crate) fn unregistered(&self) -> Result<Version, RegistryError> {
        let record = self.record(0, Vec::new());
        Version::parse(VersionName { model: self.model.clone(), number: 0 }, record)
    }

    /// The bytes of everything but what depends on the server: to notice a change.
    #[cfg(test)]
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut record = VersionRecord { code_version: String::new(), ..self.record(0, Vec::new()) };
        if let Some(chip) = record.preprocessing.as_mut().and_then(|p| p.face_chip.as_mut()) {
            chip.detector.clear();
        }
        record.encode_to_vec()
    }

    /// The manifest with this number and these tensors, digest included.
    pub(super) fn manifest(&self, number: u64, tensors: Vec<TensorRef>) -> VersionRecord {
        let mut record = self.record(number, tensors);
        record.create_time = Some(SystemTime::now().into());
        record.digest = Digest::of(&record.encode_to_vec()).as_bytes().to_vec();
        record
    }

    /// The manifest without time and digest.
    fn record(&self, number: u64, tensors: Vec<TensorRef>) -> VersionRecord {
        let origin = self.origin.clone();
        VersionRecord {
            model: self.model.to_string(),
            number,
            create_time: None,
            architecture: self.architecture.into(),
            heads: self.heads.clone(),
            preprocessing: Some(self.reads.to_stored()),
            tensors,
            calibrations: self.calibrations.clone(),
            embedding_layers: self.embedding_layers.clone(),
            metrics: self.metrics.clone(),
            golden: self.golden.as_ref().map(|golden| store::Golden {
                input_seed: golden.input_seed,
                outputs: golden.outputs.clone(),
                tolerance: golden.tolerance,
            }),
            training_run: origin.training_run,
            recipe: origin.recipe,
            data_fingerprint: origin.data_fingerprint,
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            imported_from: origin.imported_from,
            parent_version: origin.parent_version.map(|parent| parent.to_string()).unwrap_or_default(),
            licence: origin.licence,
            source: origin.source,
            published_as: origin.published_as,
            thresholds: self.thresholds,
            identity: self.identity.clone(),
            digest: Vec::new(),
        }
    }
}

/// The field of a manifest that holds its digest.
const DIGEST_FIELD: u32 = 18;

/// SHA-256 over a stored manifest without its digest.
///
/// The field is cut out of the bytes as they are stored. A manifest that a newer program wrote has fields that this one
/// does not know, and they count.
///
/// # Errors
/// When the bytes are no protobuf message.
pub(super) fn manifest_digest(payload: &[u8]) -> Result<Digest, DecodeError> {
    let mut without = Vec::with_capacity(payload.len());
    let mut rest = payload;
    while !rest.is_empty() {
        let before = rest;
        let (field, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, field, &mut rest, DecodeContext::default())?;
        if field != DIGEST_FIELD {
            without.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    Ok(Digest::of(&without))
}

/// A tensor's entry in the manifest.
pub(super) fn tensor_ref(tensor: &TensorData, blob: &Digest) -> TensorRef {
    let dtype = match tensor.dtype {
        Dtype::F32 => "f32",
        Dtype::I64 => "i64",
    };
    TensorRef {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: dtype.to_owned(),
        blob: blob.as_bytes().to_vec(),
    }
}

/// The element type that a manifest names.
pub(super) fn dtype(version: &VersionName, tensor: &TensorRef) -> Result<Dtype, RegistryError> {
    match tensor.dtype.as_str() {
        "f32" => Ok(Dtype::F32),
        "i64" => Ok(Dtype::I64),
        other => Err(RegistryError::UnsupportedVersion {
            version: version.clone(),
            detail: format!("its tensor {} has the unknown element type {other:?}", tensor.name),
        }),
    }
}
