//! A version, parsed once from its record: its input, its heads and its dependencies.

use super::{Origin, RegistryError, reads::Reads};
use crate::{
    digest::Hex,
    names::{EmbeddingSpace, VersionName},
    nn::{Architecture, Golden, HeadKind, NetworkKind, NetworkSpec, PublishedNetwork},
    proto::{
        store::{HeadCalibration, TensorRef, VersionRecord},
        v1::{self, head},
    },
};

/// An immutable version. It contains or names everything that determines its answers.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Its name.
    pub name: VersionName,
    /// Its input.
    pub reads: Reads,
    /// Its heads, in the order of its network's outputs; a detector or embedder has none.
    pub heads: Vec<Head>,
    /// The layers whose outputs can be compared.
    pub embedding_layers: Vec<EmbeddingLayer>,
    /// Its network.
    pub network: NetworkKind,
    /// The network's outputs when the version was registered.
    pub golden: Option<Golden>,
    /// The quality thresholds of faces, for a version that reads faces.
    pub thresholds: Option<v1::QualityThresholds>,
    /// The calibration of its embedding's scores, if measured.
    pub identity: Option<v1::IdentityCalibration>,
    /// Its origin.
    pub origin: Origin,
    pub(super) record: VersionRecord,
}

/// A head of a version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// Its name, such as "age".
    pub name: String,
    /// Its kind of answer.
    pub kind: AnswerKind,
}

/// The kind of answer of a head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AnswerKind {
    /// A number.
    Regression {
        /// Its unit, such as "years"; may be empty.
        unit: String,
        /// The interval around it, if the head is calibrated.
        interval: Option<Interval>,
    },
    /// A probability for each label.
    Classification {
        /// The labels, in the order of the outputs.
        labels: Vec<String>,
    },
}

/// The interval around an estimate: split conformal on absolute residuals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    /// The nominal fraction of true values inside, above 0 and below 1.
    pub coverage: f64,
    /// Half its width, in the head's unit.
    pub half_width: f64,
    /// Added to the half width per unit of the answer's own standard deviation.
    pub half_width_per_spread: f64,
}

/// A layer whose output is an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EmbeddingLayer {
    /// Its name, such as "embedding512".
    pub name: String,
    /// The number of components of an embedding.
    pub dimensions: usize,
}

impl Version {
    /// Parses a record whose digest was verified.
    ///
    /// # Errors
    /// [`RegistryError::UnsupportedVersion`] when the record has features unknown to this program.
    pub(super) fn parse(name: VersionName, record: VersionRecord) -> Result<Self, RegistryError> {
        let unsupported = |detail: String| RegistryError::UnsupportedVersion { version: name.clone(), detail };
        let reads = Reads::parse(record.preprocessing.as_ref()).map_err(unsupported)?;
        let heads = record.heads.iter().map(|head| parse_head(head, &record.calibrations));
        let heads = heads.collect::<Result<Vec<_>, _>>().map_err(unsupported)?;
        let network = network(record.architecture, &heads, &reads).map_err(unsupported)?;
        let embedding_layers = record.embedding_layers.iter();
        Ok(Self {
            heads,
            embedding_layers: embedding_layers
                .map(|layer| EmbeddingLayer { name: layer.layer.clone(), dimensions: layer.dimensions as usize })
                .collect(),
            network,
            golden: record.golden.clone().map(Golden::from),
            thresholds: record.thresholds,
            identity: record.identity.clone(),
            origin: Origin::of(&record),
            reads,
            name,
            record,
        })
    }

    /// Returns the versions that this one needs loaded: its detector and the version of the paired embedding.
    #[must_use]
    pub(crate) fn dependencies(&self) -> Vec<VersionName> {
        match &self.reads {
            Reads::Faces { detector, space, .. } => {
                std::iter::once(detector.clone()).chain(space.as_ref().map(|space| space.version.clone())).collect()
            }
            Reads::Photos { .. } | Reads::Finds(_) => Vec::new(),
        }
    }

    /// Returns the space of its first layer, if it has any.
    #[must_use]
    pub(crate) fn first_space(&self) -> Option<EmbeddingSpace> {
        let layer = self.embedding_layers.first()?;
        Some(EmbeddingSpace { version: self.name.clone(), layer: layer.name.as_str().into() })
    }

    /// Returns the space of its photos' embeddings: the paired one, or else its own first.
    #[must_use]
    pub(crate) fn default_space(&self) -> Option<EmbeddingSpace> {
        match &self.reads {
            Reads::Faces { space: Some(space), .. } => Some(space.clone()),
            _ => self.first_space(),
        }
    }

    /// Returns its architecture.
    #[must_use]
    pub(crate) fn architecture(&self) -> v1::Architecture {
        self.record.architecture()
    }

    /// Returns true if another version has the same tensors and input, and so the same answers.
    #[must_use]
    pub(crate) fn has_same_network(&self, other: &Self) -> bool {
        self.record.tensors == other.record.tensors && self.reads == other.reads
    }

    /// Returns the intervals of its heads, as stored.
    #[must_use]
    pub(crate) fn calibrations(&self) -> &[HeadCalibration] {
        &self.record.calibrations
    }

    /// Returns the names of its tensors.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.record.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Converts to the contract's form, without load state and aliases, which are not part of the version.
    #[must_use]
    pub(crate) fn describe(&self) -> v1::ModelVersion {
        describe(&self.name, &self.record)
    }
}

/// Describes a stored version, even one that this program cannot load.
pub(super) fn describe(name: &VersionName, record: &VersionRecord) -> v1::ModelVersion {
    let preprocessing = record.preprocessing.as_ref();
    let chip = preprocessing.and_then(|p| p.face_chip.as_ref());
    let space = |layer: &crate::proto::store::EmbeddingLayer| v1::EmbeddingSpace {
        name: format!("{name}#{}", layer.layer),
        dimensions: i32::try_from(layer.dimensions).unwrap_or(i32::MAX),
    };
    v1::ModelVersion {
        name: name.to_string(),
        create_time: record.create_time,
        architecture: record.architecture,
        heads: record.heads.clone(),
        image_size_px: preprocessing.map_or(0, |p| i32::try_from(p.image_size_px).unwrap_or(i32::MAX)),
        metrics: record.metrics.clone(),
        embedding_spaces: record.embedding_layers.iter().map(space).collect(),
        provenance: Some(v1::Provenance {
            training_run: record.training_run.clone(),
            recipe: record.recipe.clone(),
            data_fingerprint: record.data_fingerprint.clone(),
            seed: record.recipe.as_ref().map_or(0, |r| r.seed),
            code_version: record.code_version.clone(),
            imported_from: record.imported_from.clone(),
            parent_version: record.parent_version.clone(),
            licence: record.licence.clone(),
            source: record.source.clone(),
        }),
        face_reader: chip.map(|chip| v1::FaceReader {
            detector: chip.detector.clone(),
            embedder: chip.embedding_space.split('#').next().unwrap_or_default().to_owned(),
            thresholds: record.thresholds,
        }),
        identity_calibration: record.identity.clone(),
        digest: Hex(&record.digest).to_string(),
        weight_bytes: record.tensors.iter().map(n_bytes).sum(),
        ..v1::ModelVersion::default()
    }
}

fn n_bytes(tensor: &TensorRef) -> i64 {
    let width = if tensor.dtype == "i64" { 8 } else { 4 };
    width * tensor.shape.iter().product::<i64>()
}

fn parse_head(head: &v1::Head, calibrations: &[HeadCalibration]) -> Result<Head, String> {
    let interval = calibrations.iter().find(|calibration| calibration.head == head.name).map(|c| Interval {
        coverage: c.coverage,
        half_width: c.half_width,
        half_width_per_spread: c.half_width_per_spread,
    });
    let kind = match &head.kind {
        Some(head::Kind::Regression(kind)) => AnswerKind::Regression { unit: kind.unit.clone(), interval },
        Some(head::Kind::Classification(kind)) => AnswerKind::Classification { labels: kind.labels.clone() },
        None => return Err(format!("its head {} has no kind", head.name)),
    };
    Ok(Head { name: head.name.clone(), kind })
}

/// Returns the network of an architecture, which must fit the input.
fn network(architecture: i32, heads: &[Head], reads: &Reads) -> Result<NetworkKind, String> {
    let known = v1::Architecture::try_from(architecture).unwrap_or(v1::Architecture::Unspecified);
    let residual = match known {
        v1::Architecture::Resnet18 => Some(Architecture::ResNet18),
        v1::Architecture::Resnet34 => Some(Architecture::ResNet34),
        v1::Architecture::Resnet50 => Some(Architecture::ResNet50),
        _ => None,
    };
    let head_kind = |head: &Head| {
        let kind = match &head.kind {
            AnswerKind::Regression { .. } => HeadKind::Regression,
            AnswerKind::Classification { labels } => HeadKind::Classification { n_labels: labels.len() },
        };
        (head.name.clone(), kind)
    };
    match (residual, published_network(known), reads) {
        (Some(architecture), _, Reads::Photos { normalisation, .. }) => {
            // Dropout has no effect in inference.
            let spec = NetworkSpec { architecture, heads: heads.iter().map(head_kind).collect(), dropout: 0.0 };
            Ok(NetworkKind::Residual { spec, mean: normalisation.mean, std: normalisation.std })
        }
        (_, Some(network @ PublishedNetwork::Mtcnn), Reads::Finds(_))
        | (
            _,
            Some(network @ (PublishedNetwork::DlibAgeGender | PublishedNetwork::DlibFaceDescriptor)),
            Reads::Faces { .. },
        ) => Ok(NetworkKind::Published(network)),
        _ if known == v1::Architecture::Unspecified => Err(format!("its architecture {architecture} is not known")),
        _ => Err(format!("a {} cannot read its input", known.as_str_name())),
    }
}

/// Returns the published network of an architecture; `None` for those that this project trains.
pub(crate) fn published_network(architecture: v1::Architecture) -> Option<PublishedNetwork> {
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
