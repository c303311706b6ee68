//! The stored manifest of a version, and its digest.

use std::{collections::BTreeMap, time::SystemTime};

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use super::{Origin, Reads, RegistryError, Version};
use crate::{
    names::{ModelId, VersionName},
    nn::{Dtype, Golden, TensorData},
    proto::{
        store::{self, HeadCalibration, TensorRef, VersionRecord},
        v1,
    },
    store::Digest,
};

/// A version to register.
#[derive(Clone, Debug)]
pub(crate) struct NewVersion {
    /// The model; created if it does not exist.
    pub model: ModelId,
    /// The network architecture.
    pub architecture: v1::Architecture,
    /// Its heads, with the labels of classifications filled in.
    pub heads: Vec<v1::Head>,
    /// What it reads.
    pub reads: Reads,
    /// Every parameter and buffer of its network.
    pub tensors: Vec<TensorData>,
    /// The intervals of its heads.
    pub calibrations: Vec<HeadCalibration>,
    /// The layers whose outputs can be compared, and their sizes.
    pub embedding_layers: Vec<store::EmbeddingLayer>,
    /// Its metrics on the validation part.
    pub metrics: BTreeMap<String, f64>,
    /// The outputs of its network for a known input.
    pub golden: Option<Golden>,
    /// The quality thresholds of faces, for a version that reads faces.
    pub thresholds: Option<v1::QualityThresholds>,
    /// The calibration of its embedding's scores, if measured.
    pub identity: Option<v1::IdentityCalibration>,
    /// The version's origin.
    pub origin: Origin,
}

impl NewVersion {
    /// Makes a version with only the required parts.
    pub(crate) fn new(
        model: ModelId,
        architecture: v1::Architecture,
        reads: Reads,
        tensors: Vec<TensorData>,
        origin: Origin,
    ) -> Self {
        Self {
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

    /// Builds the version without a number; enough to run its network.
    ///
    /// # Errors
    /// [`RegistryError::UnsupportedVersion`] when its parts do not fit together.
    pub(crate) fn unregistered(&self) -> Result<Version, RegistryError> {
        let record = self.record(0, Vec::new());
        Version::parse(VersionName { model: self.model.clone(), number: 0 }, record)
    }

    /// Encodes all fields that do not depend on the server, to detect a change.
    #[cfg(test)]
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut record = VersionRecord { code_version: String::new(), ..self.record(0, Vec::new()) };
        if let Some(chip) = record.preprocessing.as_mut().and_then(|p| p.face_chip.as_mut()) {
            chip.detector.clear();
        }
        record.encode_to_vec()
    }

    /// Makes the manifest with this number and these tensors, including the digest.
    pub(super) fn manifest(&self, number: u64, tensors: Vec<TensorRef>) -> VersionRecord {
        let mut record = self.record(number, tensors);
        record.create_time = Some(SystemTime::now().into());
        record.digest = Digest::of(&record.encode_to_vec()).as_bytes().to_vec();
        record
    }

    /// Makes the manifest without time and digest.
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
            golden: self.golden.clone().map(|golden| store::Golden {
                input_seed: golden.input_seed,
                outputs: golden.outputs,
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

impl From<store::Golden> for Golden {
    fn from(stored: store::Golden) -> Self {
        Self { input_seed: stored.input_seed, outputs: stored.outputs, tolerance: stored.tolerance }
    }
}

/// The manifest field with the digest.
const DIGEST_FIELD: u32 = 18;

/// Computes the SHA-256 of a stored manifest without its digest field.
///
/// The field is cut out of the stored bytes, because a newer program's manifest has fields unknown to this one, which
/// the digest covers.
///
/// # Errors
/// When the bytes are not a protobuf message.
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

/// Makes a tensor's entry in the manifest.
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

/// Parses the element type in a manifest.
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
