//! Registers weights as versions: files that a caller names, and those that come published.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{App, AppError, Idempotent, Models, blocking, detached, published::Published};
use crate::{
    digest::Digest,
    names::{ModelId, VersionName},
    nn::{NnError, PublishedNetwork, TensorData, parse_weights, read_file, read_weights},
    proto::{
        store::{EmbeddingLayer, Preprocessing, VersionRecord},
        v1,
    },
    registry::{GOLDEN_SEED, NewVersion, Origin, golden},
    serving::{ServeError, ServingPool},
    training::{Head, Roots, TrainingError, architecture},
};

/// The longest licence and source that are kept, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

impl App {
    /// Registers the weights of a file or folder under the roots; refuses tensors that do not fit the network, by name.
    ///
    /// # Errors
    /// When the path leads outside the roots, there are no weights or they do not fit the heads.
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
        for (field, text) in [("licence", &request.licence), ("source", &request.source)] {
            if text.len() > MAX_TEXT_BYTES {
                return Err(AppError::field(
                    field,
                    format!("must be at most {MAX_TEXT_BYTES} bytes, not {}", text.len()),
                ));
            }
        }
        let new = match published_network(request.architecture()) {
            Some(network) => self.published_network(model, network, &request).await?,
            None => self.residual_network(model, &request).await?,
        };
        register_verified(&self.models, &self.serving, new, once).await
    }

    /// A ResNet with the caller's heads.
    async fn residual_network(
        &self,
        model: ModelId,
        request: &v1::ImportModelVersionRequest,
    ) -> Result<NewVersion, AppError> {
        for (field, reference) in [("detector", &request.detector), ("embedder", &request.embedder)] {
            if !reference.is_empty() {
                return Err(AppError::field(field, "is for networks that read faces; a ResNet reads whole photos"));
            }
        }
        architecture("architecture", request.architecture)?;
        let heads = Head::parse_all("heads", &request.heads)?;
        if let Some(open) = heads.iter().find(|h| h.has_open_labels()) {
            return Err(AppError::field("heads", format!("the labels of {:?} must be given for an import", open.name)));
        }
        let image_size_px = u32::try_from(request.image_size_px)
            .ok()
            .filter(|px| (32..=512).contains(px) && px % 32 == 0)
            .ok_or_else(|| AppError::field("image_size_px", "must be 32 to 512 and a multiple of 32"))?;
        let (roots, path) = (self.roots.clone(), request.weights_path.clone());
        let tensors = self.one_import(move || Ok(read_weights(&roots.resolve("weights_path", &path)?)?)).await?;
        Ok(NewVersion {
            heads: heads.iter().map(Head::to_proto).collect(),
            embedding_layers: super::embedding_layers(),
            ..new_version(model, request.architecture(), preprocessing(image_size_px), tensors, origin(request))
        })
    }

    /// A network that comes published, with the heads and the preprocessing that belong to it.
    async fn published_network(
        &self,
        model: ModelId,
        network: PublishedNetwork,
        request: &v1::ImportModelVersionRequest,
    ) -> Result<NewVersion, AppError> {
        if !request.heads.is_empty() || request.image_size_px != 0 {
            let field = if request.heads.is_empty() { "image_size_px" } else { "heads" };
            return Err(AppError::field(field, "comes with this architecture and must not be given"));
        }
        let published = Published::read()?;
        let resolved = |field: &'static str, reference: &str| match reference {
            "" => Err(AppError::field(
                field,
                "must name the version that finds faces for this network, such as models/mtcnn@champion",
            )),
            reference => self.models.resolve_field(field, reference),
        };
        let detector = match network {
            PublishedNetwork::Mtcnn if !request.detector.is_empty() => {
                return Err(AppError::field(
                    "detector",
                    "is for networks that read faces; ARCHITECTURE_MTCNN finds them",
                ));
            }
            PublishedNetwork::Mtcnn => None,
            _ => Some(resolved("detector", &request.detector)?),
        };
        let mut is_as_measured = true;
        if let Some(detector) = &detector {
            let manifest = self.models.manifest(detector).await?;
            if manifest.preprocessing.as_ref().is_none_or(|p| p.detection.is_none()) {
                return Err(AppError::field("detector", format!("{detector} finds no faces")));
            }
            is_as_measured = published.finds_as_measured(&self.models, &manifest).await?;
        }
        let embedding_space = match request.embedder.as_str() {
            "" => String::new(),
            _ if network != PublishedNetwork::DlibAgeGender => {
                return Err(AppError::field("embedder", "is only for ARCHITECTURE_DLIB_AGE_GENDER"));
            }
            reference => self.embedder_space(reference, detector.as_ref()).await?,
        };
        let (roots, path) = (self.roots.clone(), request.weights_path.clone());
        let weights = self.one_import(move || read_from_roots(&roots, &path, network)).await?;
        // What was measured holds for these files behind that detector, and for nothing else.
        let pinned = published.entry(network).filter(|entry| is_as_measured && entry.is_of(&weights.digests));
        let paired = Paired { detector, embedding_space };
        Ok(published.version(model, network, pinned, weights.tensors, paired, origin(request)))
    }

    /// The space of an embedder whose faces are found as this version's are: cut out by another detector, vectors of
    /// the same name could not be compared.
    async fn embedder_space(&self, reference: &str, detector: Option<&VersionName>) -> Result<String, AppError> {
        let embedder = self.models.resolve_field("embedder", reference)?;
        let manifest = self.models.manifest(&embedder).await?;
        let Some(chip) = manifest.preprocessing.as_ref().and_then(|p| p.face_chip.as_ref()) else {
            return Err(AppError::field("embedder", format!("{embedder} embeds no faces that a detector finds")));
        };
        if detector.is_none_or(|detector| chip.detector != detector.to_string()) {
            let rule = format!("{embedder} works with {}, and so must this version", chip.detector);
            return Err(AppError::field("embedder", rule));
        }
        self.models.first_space(&embedder).await
    }

    /// One at a time: a file is held in memory whole, and more than once while it is read.
    async fn one_import<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, AppError> + Send + 'static,
    ) -> Result<T, AppError> {
        let place = Arc::clone(&self.imports).acquire_owned().await.map_err(|_| AppError::Stopping)?;
        blocking(move || {
            let _place = place;
            work()
        })
        .await
    }
}

/// What a network that reads faces works with.
#[derive(Clone, Debug, Default)]
pub(super) struct Paired {
    /// The detector that finds the faces.
    pub(super) detector: Option<VersionName>,
    /// `models/{model}/versions/{n}#{layer}`, or empty.
    pub(super) embedding_space: String,
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

fn read_from_roots(roots: &Roots, path: &str, network: PublishedNetwork) -> Result<PublishedWeights, AppError> {
    let place = roots.resolve("weights_path", path)?;
    // One file may be named itself. Within a folder every file is looked up anew: a link may lead out of the roots.
    let is_file = place.is_file() && network.files().len() == 1;
    read_files(network, |name| {
        if is_file { Ok(place.clone()) } else { Ok(roots.resolve("weights_path", &format!("{path}/{name}"))?) }
    })
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

fn origin(request: &v1::ImportModelVersionRequest) -> Origin {
    Origin {
        imported_from: request.weights_path.clone(),
        licence: request.licence.clone(),
        source: request.source.clone(),
        ..Origin::default()
    }
}

/// A version with nothing but what every one has.
pub(super) fn new_version(
    model: ModelId,
    architecture: v1::Architecture,
    preprocessing: Preprocessing,
    tensors: Vec<TensorData>,
    origin: Origin,
) -> NewVersion {
    NewVersion {
        model,
        architecture,
        heads: Vec::new(),
        preprocessing,
        tensors,
        calibrations: Vec::new(),
        embedding_layers: Vec::<EmbeddingLayer>::new(),
        metrics: BTreeMap::new(),
        golden: None,
        thresholds: None,
        identity: None,
        origin,
    }
}

/// Runs a version once, so that its golden outputs are known, and registers it.
pub(super) async fn register_verified(
    models: &Models,
    serving: &ServingPool,
    mut new: NewVersion,
    once: Idempotent,
) -> Result<v1::ModelVersion, AppError> {
    let registry = Arc::clone(models.registry());
    let (unregistered, tensors): (VersionRecord, _) = (new.unregistered(), new.tensors.clone());
    let probed = serving.probe(unregistered, tensors, GOLDEN_SEED).await;
    let outputs = probed.map_err(|error| match error {
        // Of a file that its caller named, not of a version that is stored.
        ServeError::WeightsMismatch { detail, .. } => AppError::Nn(NnError::WeightsMismatch { detail }),
        other => other.into(),
    })?;
    if let Some(at) = outputs.iter().position(|output| !output.is_finite()) {
        // It would answer nothing, and could not be told from damage later.
        let detail = format!("they answer {} where a number should be (output {at} of a test picture)", outputs[at]);
        return Err(AppError::Nn(NnError::WeightsMismatch { detail }));
    }
    new.golden = Some(golden(outputs));
    let models = models.clone();
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

/// The preprocessing of networks that start from ImageNet's statistics, which all of the ResNets do.
fn preprocessing(image_size_px: u32) -> Preprocessing {
    Preprocessing {
        image_size_px,
        mean: crate::nn::IMAGENET_MEAN.to_vec(),
        std: crate::nn::IMAGENET_STD.to_vec(),
        min_side_px: crate::nn::MIN_SIDE_PX,
        ..Preprocessing::default()
    }
}
