//! The models that a fresh server has: published weights, with what was measured of them.
//!
//! `deploy/published.toml` says which they are, pins their files, and holds the thresholds, intervals and identity
//! calibrations that belong to exactly these files. At the start those that the store does not have are registered as
//! ordinary versions; a changed entry has a new revision, and is registered beside the old.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::Deserialize;

use super::{
    AppError, Idempotent, Models, blocking,
    import::{Paired, new_version, published_network, read_files, register_verified},
};
use crate::{
    names::{ModelId, VersionName},
    nn::{AGE_GENDER_SIDE_PX, DLIB_MEAN, DLIB_STD, PublishedNetwork, SHAPE_PREFIX, TensorData},
    proto::{
        store::{Detection, EmbeddingLayer, FaceChip, HeadCalibration, Preprocessing, VersionRecord},
        v1,
    },
    registry::{NewVersion, Origin, RegistryError, name_of},
    serving::{ServingPool, detection_record},
    vision::CascadeSettings,
};

/// The entries, as they are compiled into the program.
const ENTRIES: &str = include_str!("../../deploy/published.toml");

/// Where the alignment points of an average face lie in the unit square: those of dlib's `get_face_chip_details`, by
/// which its networks' chips were cut. The corners of one eye, of the other, and the base of the nose.
const DLIB_TEMPLATE: [f32; 10] = [
    0.859_567_5,
    0.213_498_15,
    0.646_060_5,
    0.228_967_44,
    0.120_575_06,
    0.213_727_45,
    0.334_085_06,
    0.229_064_24,
    0.490_112_3,
    0.627_797_5,
];

/// Where the cascade's landmarks lie in the same square: the means over 1,431 development photos of the training part,
/// with a margin around each, so that no box reaches beyond the photo.
const LANDMARK_TEMPLATE: [f32; 10] = [0.2247, 0.2066, 0.7666, 0.206, 0.4919, 0.5259, 0.2514, 0.7632, 0.7398, 0.7633];

/// Where the box lies that dlib's frontal detector draws around a face, for which its predictor was trained: the medians
/// over 1,469 of them.
const ALIGNMENT_BOX: [f32; 3] = [0.5311, 0.5153, 1.2357];

/// The descriptor's only layer.
const DESCRIPTOR_LAYER: &str = "descriptor128";

/// Everything that comes published.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    models: Vec<Entry>,
}

/// One model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Its id, and the folder of its files.
    model: String,
    folder: String,
    architecture: String,
    /// Raised with every change of this entry.
    revision: u32,
    licence: String,
    source: String,
    /// SHA-256 by file name.
    files: BTreeMap<String, String>,
    /// Those that are not here ask nothing.
    #[serde(default)]
    thresholds: v1::QualityThresholds,
    #[serde(default)]
    intervals: Vec<Interval>,
    identity: Option<Identity>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Interval {
    head: String,
    coverage: f64,
    half_width: f64,
    half_width_per_spread: f64,
    n_examples: u64,
}

/// As [`v1::IdentityCalibration`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    intercept: f64,
    slope: f64,
    intercept_bounds: [f64; 2],
    slope_bounds: [f64; 2],
    n_people: i64,
    n_genuine_pairs: i64,
    n_impostor_pairs: i64,
    n_false_match_photos: i64,
    n_false_match_pairs: i64,
    sample: String,
    /// Score, rate, and its bounds.
    false_matches: Vec<[f64; 4]>,
}

impl Published {
    /// The entries.
    ///
    /// # Errors
    /// [`AppError::Internal`] when the program was built with a broken file; a test reads it.
    pub(super) fn read() -> Result<Self, AppError> {
        toml::from_str(ENTRIES).map_err(|e| AppError::Internal(format!("published.toml: {e}")))
    }

    /// Whether a detector is the one that the measurements of these entries were made with: registered of its entry, or
    /// with the very tensors and settings of the version that was.
    pub(super) async fn finds_as_measured(&self, models: &Models, detector: &VersionRecord) -> Result<bool, AppError> {
        let Some(entry) = self.entry(PublishedNetwork::Mtcnn) else { return Ok(false) };
        if detector.published_as == entry.published_as() {
            return Ok(true);
        }
        let model = ModelId::parse("model", &entry.model)?;
        let Some(measured) = existing(models, &model, entry.published_as()).await? else { return Ok(false) };
        let measured = models.manifest(&measured).await?;
        Ok(measured.tensors == detector.tensors && measured.preprocessing == detector.preprocessing)
    }

    /// The entry of a network.
    pub(super) fn entry(&self, network: PublishedNetwork) -> Option<&Entry> {
        self.models.iter().find(|entry| entry.network() == Some(network))
    }

    /// A version of a published network: with what was measured, where the files are the very `pinned` ones.
    pub(super) fn version(
        &self,
        model: ModelId,
        network: PublishedNetwork,
        pinned: Option<&Entry>,
        tensors: Vec<TensorData>,
        paired: Paired,
        origin: Origin,
    ) -> NewVersion {
        let architecture = match network {
            PublishedNetwork::Mtcnn => v1::Architecture::Mtcnn,
            PublishedNetwork::DlibAgeGender => v1::Architecture::DlibAgeGender,
            PublishedNetwork::DlibFaceDescriptor => v1::Architecture::DlibFaceDescriptor,
        };
        let has_predictor = tensors.iter().any(|tensor| tensor.name.starts_with(SHAPE_PREFIX));
        let new = new_version(model, architecture, preprocessing(network, paired, has_predictor), tensors, origin);
        NewVersion {
            heads: heads(network),
            embedding_layers: embedding_layers(network),
            calibrations: pinned.map(Entry::calibrations).unwrap_or_default(),
            // What a photo must be does not hang on the weights.
            thresholds: self.entry(network).map(|entry| entry.thresholds),
            identity: pinned.and_then(|entry| entry.identity.as_ref()).map(Into::into),
            ..new
        }
    }
}

impl Entry {
    fn network(&self) -> Option<PublishedNetwork> {
        published_network(v1::Architecture::from_str_name(&format!("ARCHITECTURE_{}", self.architecture))?)
    }

    /// Whether files of these digests are the pinned ones.
    pub(super) fn is_of(&self, digests: &BTreeMap<String, String>) -> bool {
        self.files == *digests
    }

    /// What a version that was made of this entry is known by.
    fn published_as(&self) -> String {
        format!("{} revision {}", self.folder, self.revision)
    }

    /// What of a version would be another if it were registered now.
    fn differs(&self, record: &VersionRecord, network: PublishedNetwork, paired: Paired) -> Option<&'static str> {
        let has_predictor = record.tensors.iter().any(|tensor| tensor.name.starts_with(SHAPE_PREFIX));
        let checks = [
            ("thresholds", record.thresholds == Some(self.thresholds)),
            ("intervals", record.calibrations == self.calibrations()),
            ("identity", record.identity == self.identity.as_ref().map(Into::into)),
            ("preprocessing", record.preprocessing == Some(preprocessing(network, paired, has_predictor))),
            ("licence", record.licence == self.licence),
            ("source", record.source == self.source),
        ];
        checks.into_iter().find(|(_, is_same)| !is_same).map(|(field, _)| field)
    }

    fn calibrations(&self) -> Vec<HeadCalibration> {
        let calibration = |interval: &Interval| HeadCalibration {
            head: interval.head.clone(),
            coverage: interval.coverage,
            half_width: interval.half_width,
            n_examples: interval.n_examples,
            half_width_per_spread: interval.half_width_per_spread,
        };
        self.intervals.iter().map(calibration).collect()
    }
}

/// Registers the published models of `folder` that the store does not have.
///
/// # Errors
/// When a file is not there or not the pinned one, or the store fails.
pub(super) async fn register_published(models: &Models, serving: &ServingPool, folder: &Path) -> Result<(), AppError> {
    let published = Published::read()?;
    let (mut detector, mut embedding_space) = (None, String::new());
    // The order of use: a version names those that it works with.
    for entry in &published.models {
        let unknown = || AppError::Internal(format!("published.toml: there is no architecture {}", entry.architecture));
        let network = entry.network().ok_or_else(unknown)?;
        let paired = match network {
            PublishedNetwork::Mtcnn => Paired::default(),
            PublishedNetwork::DlibFaceDescriptor => Paired { detector: detector.clone(), ..Paired::default() },
            PublishedNetwork::DlibAgeGender => {
                Paired { detector: detector.clone(), embedding_space: embedding_space.clone() }
            }
        };
        let version = published.registered(models, serving, folder, entry, network, paired).await?;
        match network {
            PublishedNetwork::Mtcnn => detector = Some(version),
            PublishedNetwork::DlibFaceDescriptor => embedding_space = models.first_space(&version).await?,
            PublishedNetwork::DlibAgeGender => {}
        }
    }
    Ok(())
}

impl Published {
    /// The version of an entry: the one that is there, or a new one.
    async fn registered(
        &self,
        models: &Models,
        serving: &ServingPool,
        folder: &Path,
        entry: &Entry,
        network: PublishedNetwork,
        paired: Paired,
    ) -> Result<VersionName, AppError> {
        let model = ModelId::parse("model", &entry.model)?;
        if let Some(version) = existing(models, &model, entry.published_as()).await? {
            let record = models.manifest(&version).await?;
            if let Some(field) = entry.differs(&record, network, paired) {
                // Somebody changed the entry and forgot its revision, or it works with one that has a new one.
                tracing::error!(%version, field, "differs from its published entry and keeps what it was registered with");
            }
            return Ok(version);
        }
        let place = folder.join(&entry.folder);
        let weights = blocking(move || read_files(network, |name| Ok(place.join(name)))).await.map_err(|error| {
            // What is not there has not been fetched.
            AppError::PublishedWeights {
                detail: format!("{error}; deploy/fetch_weights.py fetches what belongs there"),
            }
        })?;
        if !entry.is_of(&weights.digests) {
            let detail = format!(
                "the files of {} are not the published ones; fetch them again with deploy/fetch_weights.py",
                folder.join(&entry.folder).display()
            );
            return Err(AppError::PublishedWeights { detail });
        }
        let origin = Origin {
            published_as: entry.published_as(),
            licence: entry.licence.clone(),
            source: entry.source.clone(),
            ..Origin::default()
        };
        let new = self.version(model, network, Some(entry), weights.tensors, paired, origin);
        let once = Idempotent::never();
        let registered = register_verified(models, serving, new, once).await?;
        tracing::info!(version = registered.name, licence = entry.licence, "registered published weights");
        models.resolve(&registered.name)
    }
}

/// The version of a model that was made of an entry, if there is one.
async fn existing(models: &Models, model: &ModelId, published_as: String) -> Result<Option<VersionName>, AppError> {
    let (registry, model) = (Arc::clone(models.registry()), model.clone());
    blocking(move || {
        let mut before = None;
        loop {
            let page = match registry.list_versions(&model, before, 256) {
                Err(RegistryError::ModelNotFound { .. }) => return Ok(None),
                page => page?,
            };
            let Some(last) = page.last() else { return Ok(None) };
            before = Some(last.number);
            if let Some(record) = page.iter().find(|record| record.published_as == published_as) {
                return Ok(Some(name_of(record)));
            }
        }
    })
    .await
}

fn heads(network: PublishedNetwork) -> Vec<v1::Head> {
    let head = |name: &str, kind| v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() };
    match network {
        PublishedNetwork::DlibAgeGender => vec![
            head("age", v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() })),
            head(
                "gender",
                v1::head::Kind::Classification(v1::ClassificationHead {
                    labels: vec!["female".to_owned(), "male".to_owned()],
                }),
            ),
        ],
        PublishedNetwork::Mtcnn | PublishedNetwork::DlibFaceDescriptor => Vec::new(),
    }
}

fn embedding_layers(network: PublishedNetwork) -> Vec<EmbeddingLayer> {
    match network {
        PublishedNetwork::DlibFaceDescriptor => {
            vec![EmbeddingLayer { layer: DESCRIPTOR_LAYER.to_owned(), dimensions: 128 }]
        }
        PublishedNetwork::Mtcnn | PublishedNetwork::DlibAgeGender => Vec::new(),
    }
}

fn preprocessing(network: PublishedNetwork, paired: Paired, has_predictor: bool) -> Preprocessing {
    let chip = |image_size_px: u32, padding: f64| Preprocessing {
        image_size_px,
        mean: DLIB_MEAN.to_vec(),
        std: DLIB_STD.to_vec(),
        face_chip: Some(FaceChip {
            detector: paired.detector.as_ref().map(ToString::to_string).unwrap_or_default(),
            embedding_space: paired.embedding_space.clone(),
            padding,
            template: DLIB_TEMPLATE.to_vec(),
        }),
        ..Preprocessing::default()
    };
    match network {
        PublishedNetwork::Mtcnn => {
            let settings = detection_record(&CascadeSettings::default());
            let alignment_box = if has_predictor { ALIGNMENT_BOX.to_vec() } else { Vec::new() };
            let detection = Detection { landmark_template: LANDMARK_TEMPLATE.to_vec(), alignment_box, ..settings };
            Preprocessing { detection: Some(detection), ..Preprocessing::default() }
        }
        PublishedNetwork::DlibAgeGender => chip(AGE_GENDER_SIDE_PX, 0.2),
        PublishedNetwork::DlibFaceDescriptor => chip(150, 0.25),
    }
}

impl From<&Identity> for v1::IdentityCalibration {
    fn from(identity: &Identity) -> Self {
        let point = |&[score, rate, lower, upper]: &[f64; 4]| v1::FalseMatchPoint { score, rate, lower, upper };
        Self {
            intercept: identity.intercept,
            slope: identity.slope,
            intercept_lower: identity.intercept_bounds[0],
            intercept_upper: identity.intercept_bounds[1],
            slope_lower: identity.slope_bounds[0],
            slope_upper: identity.slope_bounds[1],
            n_people: identity.n_people,
            n_genuine_pairs: identity.n_genuine_pairs,
            n_impostor_pairs: identity.n_impostor_pairs,
            false_matches: identity.false_matches.iter().map(point).collect(),
            n_false_match_photos: identity.n_false_match_photos,
            n_false_match_pairs: identity.n_false_match_pairs,
            sample: identity.sample.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_are_whole_and_in_the_order_of_use() {
        let published = Published::read().unwrap();
        let networks: Vec<_> = published.models.iter().map(|entry| entry.network().unwrap()).collect();
        let order = [PublishedNetwork::Mtcnn, PublishedNetwork::DlibFaceDescriptor, PublishedNetwork::DlibAgeGender];
        assert_eq!(networks, order);
        for entry in &published.models {
            let network = entry.network().unwrap();
            let named: Vec<_> = network.files().iter().map(|file| file.name).collect();
            assert!(named.iter().all(|name| entry.files[*name].len() == 64) && entry.files.len() == named.len());
            for interval in &entry.intervals {
                assert!(heads(network).iter().any(|head| head.name == interval.head));
            }
            if let Some(identity) = &entry.identity {
                assert!(
                    identity.slope > 0.0 && identity.false_matches.is_sorted_by(|a, b| a[0] < b[0] && a[1] >= b[1])
                );
            }
        }
    }

    /// What is registered of an entry is never looked at again, so a change without a new revision reaches nobody who
    /// has it. When this fails: raise the entry's revision, and write down both here.
    #[test]
    fn a_changed_entry_has_a_new_revision() {
        use prost::Message;
        use sha2::{Digest, Sha256};

        let published = Published::read().unwrap();
        let made = published.models.iter().map(|entry| {
            let predictor = TensorData {
                name: format!("{SHAPE_PREFIX}initial"),
                shape: vec![0],
                dtype: crate::nn::Dtype::F32,
                bytes: bytes::Bytes::new(),
            };
            let (model, network) = (ModelId::parse("model", &entry.model).unwrap(), entry.network().unwrap());
            let origin = Origin { licence: entry.licence.clone(), source: entry.source.clone(), ..Origin::default() };
            let new = published.version(model, network, Some(entry), vec![predictor], Paired::default(), origin);
            let record = VersionRecord { code_version: String::new(), ..new.unregistered() };
            let files = format!("{:?}", entry.files);
            let digest = Sha256::digest([record.encode_to_vec(), files.into_bytes()].concat());
            (entry.published_as(), crate::digest::Hex(&digest[..8]).to_string())
        });
        let known = [
            ("mtcnn revision 1".to_owned(), "bad047b868171e4b".to_owned()),
            ("descriptor revision 1".to_owned(), "dbfb288cb1e4a11d".to_owned()),
            ("age-gender revision 1".to_owned(), "2ae0d13a06be9679".to_owned()),
        ];
        assert_eq!(made.collect::<Vec<_>>(), known);
    }
}
