//! The models of a fresh server: published weights and the values measured with them.
//!
//! `deploy/published.toml` lists them, pins their files, and holds the thresholds, intervals and identity calibrations
//! for exactly these files. At start-up, entries missing from the store are registered as ordinary versions. A changed
//! entry has a new revision, and is registered beside the old one.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::Deserialize;

use super::{
    AppError, Idempotent, Models, blocking,
    registering::{FacesFrom, PublishedWeights, read_files, register, verified},
};
use crate::{
    names::{ModelId, VersionName},
    nn::{AGE_GENDER_SIDE_PX, DLIB_MEAN, DLIB_STD, PublishedNetwork, SHAPE_PREFIX, TensorData},
    proto::{
        store::{EmbeddingLayer, HeadCalibration},
        v1,
    },
    registry::{NewVersion, Normalised, Origin, Reads, Version, published_network},
    serving::ServingPool,
    vision::{AlignmentBox, CascadeSettings, ChipSettings, DetectorSettings, Point, points},
};

/// The entries, compiled into the program.
const ENTRIES: &str = include_str!("../../deploy/published.toml");

/// The alignment points of an average face in the unit square: the corners of one eye, of the other, and the base of
/// the nose. From dlib's `get_face_chip_details`, which cut the training chips of its networks.
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

/// The cascade's landmarks in the same square: the means over 1,431 development photos of the training part, with a
/// margin around each, so that no box extends beyond the photo.
const LANDMARK_TEMPLATE: [f32; 10] = [0.2247, 0.2066, 0.7666, 0.206, 0.4919, 0.5259, 0.2514, 0.7632, 0.7398, 0.7633];

/// The box that dlib's frontal detector draws around a face, in the same square: its centre and side, the medians over
/// 1,469 boxes. dlib's shape predictor was trained for it.
const ALIGNMENT_BOX: (Point, f32) = (Point { x: 0.5311, y: 0.5153 }, 1.2357);

/// The descriptor's only layer.
const DESCRIPTOR_LAYER: &str = "descriptor128";

/// All published models.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    models: Vec<Entry>,
}

/// A published model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The model's id; `folder` holds its files.
    model: String,
    folder: String,
    architecture: String,
    /// Increased with every change of this entry.
    revision: u32,
    licence: String,
    source: String,
    /// The files' SHA-256 digests by name.
    files: BTreeMap<String, String>,
    /// A threshold that is absent requires nothing.
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

/// The same fields as [`v1::IdentityCalibration`].
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
    /// Each point: score, rate, lower and upper bound of the rate.
    false_matches: Vec<[f64; 4]>,
}

impl Published {
    /// Reads the entries.
    ///
    /// # Errors
    /// [`AppError::Internal`] when the program was built with a broken file; a test checks it.
    pub(super) fn read() -> Result<Self, AppError> {
        toml::from_str(ENTRIES).map_err(|e| AppError::Internal(format!("published.toml: {e}")))
    }

    /// Returns true if the entries were measured with this detector: it is the version registered from the detector's
    /// entry, or has the same tensors and settings as that version.
    pub(super) async fn finds_as_measured(&self, models: &Models, detector: &Version) -> Result<bool, AppError> {
        let Some(entry) = self.entry(PublishedNetwork::Mtcnn) else { return Ok(false) };
        if detector.origin.published_as == entry.published_as() {
            return Ok(true);
        }
        let Some(measured) = entry.registered(models).await? else { return Ok(false) };
        Ok(models.version(&measured).await?.has_same_network(detector))
    }

    /// Returns the entry of a network.
    pub(super) fn entry(&self, network: PublishedNetwork) -> Option<&Entry> {
        self.models.iter().find(|entry| entry.network() == Some(network))
    }

    /// Builds a version of a published network. It gets the measured values if its files are exactly the `pinned` ones.
    pub(super) fn version(
        &self,
        model: ModelId,
        network: PublishedNetwork,
        pinned: Option<&Entry>,
        tensors: Vec<TensorData>,
        faces: Option<FacesFrom>,
        origin: Origin,
    ) -> Result<NewVersion, AppError> {
        let architecture = match network {
            PublishedNetwork::Mtcnn => v1::Architecture::Mtcnn,
            PublishedNetwork::DlibAgeGender => v1::Architecture::DlibAgeGender,
            PublishedNetwork::DlibFaceDescriptor => v1::Architecture::DlibFaceDescriptor,
        };
        let has_predictor = tensors.iter().any(|tensor| tensor.name.starts_with(SHAPE_PREFIX));
        let new = NewVersion::new(model, architecture, reads(network, faces, has_predictor)?, tensors, origin);
        Ok(NewVersion {
            heads: heads(network),
            embedding_layers: embedding_layers(network),
            calibrations: pinned.map(Entry::calibrations).unwrap_or_default(),
            // The thresholds on photos do not depend on the weights.
            thresholds: self.entry(network).map(|entry| entry.thresholds),
            identity: pinned.and_then(|entry| entry.identity.as_ref()).map(Into::into),
            ..new
        })
    }
}

impl Entry {
    fn network(&self) -> Option<PublishedNetwork> {
        published_network(v1::Architecture::from_str_name(&format!("ARCHITECTURE_{}", self.architecture))?)
    }

    /// Returns true if the files with these digests are the pinned ones.
    pub(super) fn is_of(&self, digests: &BTreeMap<String, String>) -> bool {
        self.files == *digests
    }

    /// Returns the name stored with versions made from this entry.
    fn published_as(&self) -> String {
        format!("{} revision {}", self.folder, self.revision)
    }

    /// Returns the version made from this entry, if there is one.
    async fn registered(&self, models: &Models) -> Result<Option<VersionName>, AppError> {
        let (registry, published_as) = (Arc::clone(models.registry()), self.published_as());
        let model = ModelId::parse("model", &self.model)?;
        blocking(move || Ok(registry.find_published(&model, &published_as)?)).await
    }

    /// Returns the first field in which a version differs from this entry.
    ///
    /// # Errors
    /// As [`reads`].
    fn differs(
        &self,
        version: &Version,
        network: PublishedNetwork,
        faces: Option<FacesFrom>,
    ) -> Result<Option<&'static str>, AppError> {
        let has_predictor = version.tensor_names().any(|name| name.starts_with(SHAPE_PREFIX));
        let checks = [
            ("thresholds", version.thresholds == Some(self.thresholds)),
            ("intervals", version.calibrations() == self.calibrations()),
            ("identity", version.identity == self.identity.as_ref().map(Into::into)),
            ("preprocessing", version.reads == reads(network, faces, has_predictor)?),
            ("licence", version.origin.licence == self.licence),
            ("source", version.origin.source == self.source),
        ];
        Ok(checks.into_iter().find(|(_, is_same)| !is_same).map(|(field, _)| field))
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

/// Registers the published models in `folder` that are not in the store.
///
/// # Errors
/// When a file is missing or not the pinned one, or the store fails.
pub(super) async fn register_published(models: &Models, serving: &ServingPool, folder: &Path) -> Result<(), AppError> {
    let published = Published::read()?;
    let (mut detector, mut space) = (None, None);
    // The entries are in dependency order.
    for entry in &published.models {
        let unknown = || AppError::Internal(format!("published.toml: there is no architecture {}", entry.architecture));
        let network = entry.network().ok_or_else(unknown)?;
        let faces = detector.clone().filter(|_| network != PublishedNetwork::Mtcnn).map(|detector| {
            let space = space.clone().filter(|_| network == PublishedNetwork::DlibAgeGender);
            FacesFrom { detector, space }
        });
        let version = published.registered(models, serving, folder, entry, network, faces).await?;
        match network {
            PublishedNetwork::Mtcnn => detector = Some(version),
            PublishedNetwork::DlibFaceDescriptor => space = models.version(&version).await?.first_space(),
            PublishedNetwork::DlibAgeGender => {}
        }
    }
    Ok(())
}

impl Published {
    /// Returns the version of an entry, registering it if necessary.
    async fn registered(
        &self,
        models: &Models,
        serving: &ServingPool,
        folder: &Path,
        entry: &Entry,
        network: PublishedNetwork,
        faces: Option<FacesFrom>,
    ) -> Result<VersionName, AppError> {
        let model = ModelId::parse("model", &entry.model)?;
        if let Some(version) = entry.registered(models).await? {
            let registered = models.version(&version).await?;
            if let Some(field) = entry.differs(&registered, network, faces)? {
                // The entry changed without a new revision, or an entry that it depends on has a new one.
                tracing::error!(%version, field, "differs from its published entry, and keeps its registered values");
            }
            let registry = Arc::clone(models.registry());
            let (registry, registered, lacks_tensors) = blocking(move || {
                let lacks_tensors = registry.lacks_tensors(&registered)?;
                Ok((registry, registered, lacks_tensors))
            })
            .await?;
            if lacks_tensors {
                let restored = match entry.weights(folder, network).await {
                    Ok(weights) => {
                        blocking(move || {
                            registry.restore_tensors(&registered, &weights.tensors)?;
                            Ok(!registry.lacks_tensors(&registered)?)
                        })
                        .await
                    }
                    Err(error) => Err(error),
                };
                match restored {
                    Ok(true) => tracing::warn!(%version, "the store had lost its weights, which were read again"),
                    Ok(false) => tracing::error!(%version, "the store has lost its weights, and the files have others"),
                    // The others are served.
                    Err(error) => tracing::error!(%version, %error, "the store has lost its weights"),
                }
            }
            return Ok(version);
        }
        let weights = entry.weights(folder, network).await?;
        let origin = Origin {
            published_as: entry.published_as(),
            licence: entry.licence.clone(),
            source: entry.source.clone(),
            ..Origin::default()
        };
        let new = self.version(model, network, Some(entry), weights.tensors, faces, origin)?;
        let registered = register(models, Idempotent::never(), verified(serving, new)).await?;
        tracing::info!(version = registered.name, licence = entry.licence, "registered published weights");
        Ok(VersionName::parse("name", &registered.name)?)
    }
}

impl Entry {
    /// Reads the files, which must be the pinned ones.
    ///
    /// # Errors
    /// [`AppError::PublishedWeights`].
    async fn weights(&self, folder: &Path, network: PublishedNetwork) -> Result<PublishedWeights, AppError> {
        let place = folder.join(&self.folder);
        let weights = blocking(move || read_files(network, |name| Ok(place.join(name)))).await.map_err(|error| {
            // A missing file has usually not been fetched.
            AppError::PublishedWeights { detail: format!("{error}; fetch the weights with deploy/fetch_weights.py") }
        })?;
        if !self.is_of(&weights.digests) {
            let detail = format!(
                "the files of {} are not the published ones; fetch them again with deploy/fetch_weights.py",
                folder.join(&self.folder).display()
            );
            return Err(AppError::PublishedWeights { detail });
        }
        Ok(weights)
    }
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

/// Returns what a network reads.
///
/// # Errors
/// [`AppError::Internal`] for a network that reads faces, but has no detector.
fn reads(network: PublishedNetwork, faces: Option<FacesFrom>, has_predictor: bool) -> Result<Reads, AppError> {
    let (side_px, padding) = match network {
        PublishedNetwork::Mtcnn => {
            let landmarks = points(&LANDMARK_TEMPLATE);
            let (centre, side) = ALIGNMENT_BOX;
            let alignment_box = landmarks.filter(|_| has_predictor);
            return Ok(Reads::Finds(DetectorSettings {
                cascade: CascadeSettings::default(),
                landmarks,
                alignment_box: alignment_box.map(|landmarks| AlignmentBox { landmarks, centre, side }),
            }));
        }
        PublishedNetwork::DlibAgeGender => (AGE_GENDER_SIDE_PX, 0.2),
        PublishedNetwork::DlibFaceDescriptor => (150, 0.25),
    };
    let FacesFrom { detector, space } =
        faces.ok_or_else(|| AppError::Internal(format!("{network:?} reads faces and has no detector")))?;
    let chip = ChipSettings { side_px, padding, template: points(&DLIB_TEMPLATE).unwrap_or_default() };
    Ok(Reads::Faces { detector, chip, space, normalisation: Normalised { mean: DLIB_MEAN, std: DLIB_STD } })
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

    /// A registered entry is never updated, so a change without a new revision does not reach existing servers. If this
    /// fails: increase the entry's revision, and copy both new values here.
    #[test]
    fn a_changed_entry_has_a_new_revision() {
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
            let faces = (network != PublishedNetwork::Mtcnn)
                .then(|| FacesFrom { detector: VersionName { model: model.clone(), number: 1 }, space: None });
            let new = published.version(model, network, Some(entry), vec![predictor], faces, origin).unwrap();
            let files = format!("{:?}", entry.files);
            let digest = Sha256::digest([new.content(), files.into_bytes()].concat());
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
