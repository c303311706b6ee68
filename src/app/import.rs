//! ImportModelVersion: registers weights files below the training roots as a version.

use std::sync::Arc;

use super::{
    App, AppError, Call, Idempotent, blocking,
    models::no_embedding,
    published::Published,
    registering::{FacesFrom, PublishedWeights, read_files, register, verified},
};
use crate::{
    names::{EmbeddingSpace, ModelId, ModelRef, VersionName},
    nn::{IMAGENET_MEAN, IMAGENET_STD, MIN_SIDE_PX, PublishedNetwork, read_weights},
    proto::v1,
    registry::{NewVersion, Normalised, Origin, Reads, published_network},
    training::{Head, Roots},
};

/// The longest licence and the longest source, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Weights to register as a version.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// The model that gets the version; created if it does not exist.
    pub model: ModelId,
    /// The file or folder, below a training root.
    pub weights_path: String,
    /// The network.
    pub architecture: v1::Architecture,
    /// The heads, in the order of the weights; only for ResNets.
    pub heads: Vec<v1::Head>,
    /// The side of the image that the network reads; only for ResNets, 0 for others.
    pub image_size_px: i32,
    /// The detector, for networks that read faces.
    pub detector: Option<ModelRef>,
    /// The version whose embedding is paired with the answers.
    pub embedder: Option<ModelRef>,
    /// The licence, as an SPDX expression.
    pub licence: String,
    /// Where the weights come from.
    pub source: String,
}

impl App {
    /// Registers the weights in a file or folder below the training roots. Tensors that do not fit the network are
    /// refused by name.
    ///
    /// # Errors
    /// When the path is outside the training roots, there are no weights, or they do not fit the heads.
    pub(crate) async fn import_version(
        &self,
        _: &Call,
        request: Import,
        once: Idempotent,
    ) -> Result<v1::ModelVersion, AppError> {
        let prepare = async {
            for (field, text) in [("licence", &request.licence), ("source", &request.source)] {
                if text.len() > MAX_TEXT_BYTES {
                    let rule = format!("must be at most {MAX_TEXT_BYTES} bytes, not {}", text.len());
                    return Err(AppError::field(field, rule));
                }
            }
            let new = match published_network(request.architecture) {
                Some(network) => self.published_network(network, &request).await?,
                None => self.residual_network(&request).await?,
            };
            verified(&self.serving, new).await
        };
        register(&self.models, once, prepare).await
    }

    /// Prepares a ResNet with the caller's heads.
    async fn residual_network(&self, request: &Import) -> Result<NewVersion, AppError> {
        for (field, reference) in [("detector", &request.detector), ("embedder", &request.embedder)] {
            if reference.is_some() {
                return Err(AppError::field(field, "is for networks that read faces; a ResNet reads whole photos"));
            }
        }
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
        // ResNets use the statistics of ImageNet.
        let normalisation = Normalised { mean: IMAGENET_MEAN, std: IMAGENET_STD };
        let reads = Reads::Photos { side_px: image_size_px, min_side_px: MIN_SIDE_PX, normalisation };
        Ok(NewVersion {
            heads: heads.iter().map(Head::to_proto).collect(),
            embedding_layers: super::embedding_layers(),
            ..NewVersion::new(request.model.clone(), request.architecture, reads, tensors, origin(request))
        })
    }

    /// Prepares a published network with its own heads and preprocessing.
    async fn published_network(&self, network: PublishedNetwork, request: &Import) -> Result<NewVersion, AppError> {
        if !request.heads.is_empty() || request.image_size_px != 0 {
            let field = if request.heads.is_empty() { "image_size_px" } else { "heads" };
            return Err(AppError::field(field, "comes with this architecture and must not be given"));
        }
        let published = Published::read()?;
        let detector = match (network, &request.detector) {
            (PublishedNetwork::Mtcnn, Some(_)) => {
                return Err(AppError::field(
                    "detector",
                    "is for networks that read faces; ARCHITECTURE_MTCNN finds them",
                ));
            }
            (PublishedNetwork::Mtcnn, None) => None,
            (_, Some(detector)) => Some(self.models.resolve(Some(detector))?),
            (_, None) => {
                return Err(AppError::field(
                    "detector",
                    "must name the version that finds faces for this network, such as models/mtcnn@champion",
                ));
            }
        };
        let mut is_as_measured = true;
        if let Some(detector) = &detector {
            let version = self.models.version(detector).await?;
            if !matches!(version.reads, Reads::Finds(_)) {
                return Err(AppError::field("detector", format!("{detector} finds no faces")));
            }
            is_as_measured = published.finds_as_measured(&self.models, &version).await?;
        }
        let space = match &request.embedder {
            None => None,
            Some(_) if network != PublishedNetwork::DlibAgeGender => {
                return Err(AppError::field("embedder", "is only for ARCHITECTURE_DLIB_AGE_GENDER"));
            }
            Some(reference) => Some(self.embedder_space(reference, detector.as_ref()).await?),
        };
        let (roots, path) = (self.roots.clone(), request.weights_path.clone());
        let weights = self.one_import(move || read_from_roots(&roots, &path, network)).await?;
        // The measured values hold only for exactly these files behind exactly that detector.
        let pinned = published.entry(network).filter(|entry| is_as_measured && entry.is_of(&weights.digests));
        let faces = detector.map(|detector| FacesFrom { detector, space });
        published.version(request.model.clone(), network, pinned, weights.tensors, faces, origin(request))
    }

    /// Resolves the embedder's space. It must use the same detector: embeddings of faces cut out with different
    /// detectors cannot be compared.
    async fn embedder_space(
        &self,
        reference: &ModelRef,
        detector: Option<&VersionName>,
    ) -> Result<EmbeddingSpace, AppError> {
        let embedder = self.models.resolve(Some(reference))?;
        let version = self.models.version(&embedder).await?;
        let Reads::Faces { detector: its_detector, .. } = &version.reads else {
            return Err(AppError::field("embedder", format!("{embedder} does not embed faces found by a detector")));
        };
        if detector != Some(its_detector) {
            let rule = format!("{embedder} depends on {its_detector}, and so must this version");
            return Err(AppError::field("embedder", rule));
        }
        version.first_space().ok_or_else(|| no_embedding(&embedder))
    }

    /// Runs one import at a time, because each holds whole files in memory, more than once.
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

fn read_from_roots(roots: &Roots, path: &str, network: PublishedNetwork) -> Result<PublishedWeights, AppError> {
    let place = roots.resolve("weights_path", path)?;
    // A single file may be named itself. In a folder every file is resolved on its own, because a link may point
    // outside the roots.
    let is_file = place.is_file() && network.files().len() == 1;
    read_files(network, |name| {
        if is_file { Ok(place.clone()) } else { Ok(roots.resolve("weights_path", &format!("{path}/{name}"))?) }
    })
}

fn origin(request: &Import) -> Origin {
    Origin {
        imported_from: request.weights_path.clone(),
        licence: request.licence.clone(),
        source: request.source.clone(),
        ..Origin::default()
    }
}
