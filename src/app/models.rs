//! Models, versions and aliases: which version answers, and that it is loaded before anyone is sent to it.
//!
//! Resolving an alias on the hot path reads a map that is swapped whole, never the store. A swap drops nothing: the
//! new version is loaded, warmed and verified, then the alias flips, then the old version drains and is unloaded; a
//! call that was sent to the old one just before finds its answer there or is sent to the new one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use tokio::sync::OwnedMutexGuard;

use super::{AppError, Call, Idempotent, Page, Paged, blocking, detached, idempotency::Answer};
use crate::{
    names::{AliasName, EmbeddingSpace, ModelId, ModelRef, SpaceRef, VersionName},
    proto::{store::VersionRecord, v1},
    registry::{ModelView, Registry, RegistryError, name_of, partners},
    serving::{EngineSource, LoadState, ServeError, ServingPool},
    similarity::SimilarityIndex,
};

/// The model that answers where none is named and there are several: the published one has this name.
const USUAL_MODEL: &str = "face";

/// What is known of each model.
type Aliases = BTreeMap<ModelId, Known>;

/// What is known of a model without asking the store.
#[derive(Debug, Default)]
struct Known {
    aliases: BTreeMap<AliasName, u64>,
    /// Whether its champion answers anything: a detector and an embedding have no heads.
    answers: bool,
}

/// The models of a server.
#[derive(Clone)]
pub struct Models {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<Registry>,
    serving: ServingPool,
    default_model: Option<ModelRef>,
    aliases: ArcSwap<Aliases>,
    /// Held while the alias map is read anew, so that an older reading never overwrites a newer one.
    refreshing: Mutex<()>,
    manifests: Mutex<HashMap<VersionName, Arc<VersionRecord>>>,
    /// A version's load, its unload, and what makes it needed or not, are one at a time.
    turns: Mutex<HashMap<VersionName, Arc<tokio::sync::Mutex<()>>>>,
    /// Versions whose last load failed, or that failed every photo since.
    broken: Mutex<HashSet<VersionName>>,
    index: Arc<SimilarityIndex>,
}

impl Models {
    /// The registry's models, answered by `serving`; the versions that the collections of `index` compare with stay
    /// loaded.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(super) fn open(
        registry: Arc<Registry>,
        serving: ServingPool,
        default_model: Option<ModelRef>,
        index: Arc<SimilarityIndex>,
    ) -> Result<Self, AppError> {
        let aliases = read_aliases(&registry)?;
        Ok(Self {
            shared: Arc::new(Shared {
                registry,
                serving,
                default_model,
                aliases: ArcSwap::from_pointee(aliases),
                refreshing: Mutex::default(),
                manifests: Mutex::default(),
                turns: Mutex::default(),
                broken: Mutex::default(),
                index,
            }),
        })
    }

    /// The registry underneath.
    #[must_use]
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// Loads every version that an alias points at or a collection compares with. A version that cannot be loaded is
    /// logged and left out: the others answer.
    pub(super) async fn load_needed(&self) {
        let aliases = self.shared.aliases.load_full();
        let named = aliases.iter().flat_map(|(model, known)| {
            known.aliases.values().map(|&number| VersionName { model: model.clone(), number })
        });
        let mut needed: BTreeSet<VersionName> = named.collect();
        needed.extend(self.compared());
        for version in needed {
            if let Err(error) = self.ready(&version).await {
                tracing::error!(%version, %error, "cannot load a version that an alias or a collection needs");
            }
        }
    }

    /// The versions that collections compare with.
    pub(super) fn compared(&self) -> BTreeSet<VersionName> {
        self.shared.index.versions()
    }

    /// Returns true if the version, or one that it works with, could not be loaded or fails every photo. It stays
    /// broken until a load of it succeeds.
    pub(super) fn is_broken(&self, version: &VersionName) -> bool {
        let state = self.shared.serving.state(&version.to_string());
        let mut broken = lock(&self.shared.broken);
        if state == LoadState::Failed {
            broken.insert(version.clone());
        }
        if state != LoadState::Loaded && broken.contains(version) {
            return true;
        }
        drop(broken);
        let manifest = lock(&self.shared.manifests).get(version).cloned();
        let partners = manifest.and_then(|manifest| partners(&manifest).ok());
        partners.into_iter().flatten().any(|partner| self.is_broken(&partner))
    }

    /// The version that a reference means now; none means the default model's champion.
    ///
    /// # Errors
    /// [`RegistryError`] for a name that means nothing.
    pub(super) fn resolve(&self, reference: Option<&ModelRef>) -> Result<VersionName, AppError> {
        let reference = match reference {
            Some(reference) => reference.clone(),
            None => self.default_ref()?,
        };
        match reference {
            ModelRef::Version(version) => Ok(version),
            ModelRef::Alias { model, alias } => {
                let aliases = self.shared.aliases.load();
                let of_model =
                    aliases.get(&model).ok_or_else(|| RegistryError::ModelNotFound { model: model.clone() })?;
                let number = *of_model
                    .aliases
                    .get(&alias)
                    .ok_or_else(|| RegistryError::AliasNotFound { model: model.clone(), alias: alias.clone() })?;
                Ok(VersionName { model, number })
            }
        }
    }

    fn default_ref(&self) -> Result<ModelRef, AppError> {
        if let Some(configured) = &self.shared.default_model {
            return Ok(configured.clone());
        }
        let aliases = self.shared.aliases.load();
        let answering = aliases.iter().filter(|(_, known)| known.answers).map(|(model, _)| model);
        let answering: Vec<_> = answering.collect();
        // What a fresh server knows about faces, whatever is trained or imported beside it.
        if let Some(model) = answering.iter().find(|model| model.as_bytes() == USUAL_MODEL.as_bytes()) {
            return Ok(ModelRef::Alias { model: (*model).clone(), alias: AliasName::champion() });
        }
        match answering.as_slice() {
            [only] => Ok(ModelRef::Alias { model: (*only).clone(), alias: AliasName::champion() }),
            [] => Err(AppError::field(
                "model",
                "this server has no model yet: start it with the published weights (models.published_dir), train one (visage train --help) or import one",
            )),
            several => Err(AppError::field(
                "model",
                format!("name one of this server's {} models, such as models/{}", several.len(), several[0]),
            )),
        }
    }

    /// A version's manifest.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub(super) async fn manifest(&self, version: &VersionName) -> Result<Arc<VersionRecord>, AppError> {
        if let Some(known) = lock(&self.shared.manifests).get(version) {
            return Ok(Arc::clone(known));
        }
        let (registry, name) = (Arc::clone(&self.shared.registry), version.clone());
        let record = Arc::new(blocking(move || Ok(registry.get_version(&name)?)).await?);
        lock(&self.shared.manifests).insert(version.clone(), Arc::clone(&record));
        Ok(record)
    }

    /// A version's manifest, once it is loaded, warm and verified.
    ///
    /// # Errors
    /// When there is no such version, its weights are damaged, or the device refuses it.
    pub(super) async fn ready(&self, version: &VersionName) -> Result<Arc<VersionRecord>, AppError> {
        let manifest = self.manifest(version).await?;
        let name = version.to_string();
        if self.shared.serving.state(&name) == LoadState::Loaded {
            return Ok(manifest);
        }
        // Its own task: a caller that cannot wait leaves it running for the next.
        let (models, version) = (self.clone(), version.clone());
        detached(async move {
            let _turn = models.turn(&version).await;
            models.load(&version).await
        })
        .await?;
        Ok(manifest)
    }

    /// The turn to load or unload a version, or to make it needed or not. Whoever holds one takes no other but those of
    /// the versions that this one works with.
    pub(super) async fn turn(&self, version: &VersionName) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(lock(&self.shared.turns).entry(version.clone()).or_default());
        turn.lock_owned().await
    }

    /// Loads a version, whose turn the caller has, and before it those that it works with.
    pub(super) fn load<'a>(&'a self, version: &'a VersionName) -> BoxFuture<'a, Result<(), AppError>> {
        Box::pin(async move {
            let loaded = self.load_unrecorded(version).await;
            let mut broken = lock(&self.shared.broken);
            match &loaded {
                Ok(()) => drop(broken.remove(version)),
                // These say nothing about the version.
                Err(AppError::Serve(ServeError::Overloaded { .. } | ServeError::Stopping)) => {}
                Err(_) => drop(broken.insert(version.clone())),
            }
            loaded
        })
    }

    async fn load_unrecorded(&self, version: &VersionName) -> Result<(), AppError> {
        let name = version.to_string();
        if self.shared.serving.state(&name) == LoadState::Loaded {
            return Ok(());
        }
        let manifest = self.manifest(version).await?;
        // A version works with others, and those with none that works with it: there is no circle.
        for partner in partners(&manifest)? {
            self.ready(&partner).await?;
        }
        let (registry, record) = (Arc::clone(&self.shared.registry), Arc::clone(&manifest));
        let tensors = blocking(move || Ok(registry.load_tensors(&record)?)).await?;
        let source = EngineSource { version: name.clone(), record: (*manifest).clone(), tensors };
        self.shared.serving.load(&name, source).await?;
        tracing::info!(version = %name, "loaded");
        Ok(())
    }

    /// Points an alias at a version, or removes it.
    ///
    /// # Errors
    /// [`RegistryError::AliasMoved`] when the alias is not where the caller expected it; what [`Models::ready`] says
    /// of the version, before anything has changed.
    pub async fn set_alias(
        &self,
        _: &Call,
        model: ModelId,
        alias: AliasName,
        target: Option<VersionName>,
        expected: Option<Option<u64>>,
        once: Idempotent,
    ) -> Result<v1::Model, AppError> {
        let models = self.clone();
        detached(async move {
            let prepare = async {
                let Some(version) = &target else { return Ok(None) };
                models.manifest(version).await?;
                let turn = models.turn(version).await;
                models.load(version).await?;
                Ok(Some(turn))
            };
            let (registry, id) = (Arc::clone(&models.shared.registry), model.clone());
            let number = target.as_ref().map(|version| version.number);
            let commit = move |turn, once: &Idempotent| {
                let (view, before) =
                    registry.set_alias(&id, &alias, number, expected, |view| once.remember(&model_to_proto(view)))?;
                Ok((model_to_proto(&view), before, turn))
            };
            let done = once.run(models.shared.registry.store(), prepare, commit).await?;
            let (answer, before, _turn) = match done {
                Answer::New(done) => done,
                Answer::Stored(answer) => (answer, None, None),
            };
            models.refresh().await?;
            if let Some(old) = before.filter(|old| Some(*old) != number) {
                models.retire(VersionName { model, number: old });
            }
            Ok(answer)
        })
        .await
    }

    /// A model with its aliases.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn get(&self, _: &Call, model: ModelId) -> Result<v1::Model, AppError> {
        let registry = Arc::clone(&self.shared.registry);
        blocking(move || Ok(model_to_proto(&registry.get_model(&model)?))).await
    }

    /// A page of the models, by id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, _: &Call, page: Page) -> Result<Paged<v1::Model>, AppError> {
        let registry = Arc::clone(&self.shared.registry);
        blocking(move || {
            let rows = registry.list_models(page.after.as_deref(), page.limit())?;
            let paged = page.finish(rows, |view| view.record.id.clone().into_bytes());
            Ok(paged.map(|view| model_to_proto(&view)))
        })
        .await
    }

    /// A page of a model's versions, newest first.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn list_versions(
        &self,
        _: &Call,
        model: ModelId,
        page: Page,
    ) -> Result<Paged<v1::ModelVersion>, AppError> {
        let before = match &page.after {
            None => None,
            Some(key) => Some(u64::from_be_bytes(
                key.as_slice().try_into().map_err(|_| AppError::PageTokenInvalid { list: page.list.clone() })?,
            )),
        };
        let registry = Arc::clone(&self.shared.registry);
        let paged = blocking(move || {
            let rows = registry.list_versions(&model, before, page.limit())?;
            Ok(page.finish(rows, |record| record.number.to_be_bytes().to_vec()))
        })
        .await?;
        Ok(paged.map(|record| self.version_to_proto(&record)))
    }

    /// A version as it stands.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub async fn get_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        let manifest = self.manifest(&self.resolve(Some(reference))?).await?;
        Ok(self.version_to_proto(&manifest))
    }

    /// Loads a version and keeps it loaded until it is unloaded.
    ///
    /// # Errors
    /// As [`Models::ready`].
    pub async fn load_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        let manifest = self.ready(&self.resolve(Some(reference))?).await?;
        Ok(self.version_to_proto(&manifest))
    }

    /// The embedding space of a version's first layer.
    ///
    /// # Errors
    /// When there is no such version, or it has no layer that can be compared.
    pub(super) async fn first_space(&self, version: &VersionName) -> Result<String, AppError> {
        let manifest = self.manifest(version).await?;
        match manifest.embedding_layers.first() {
            Some(layer) => Ok(format!("{version}#{}", layer.layer)),
            None => Err(AppError::UnsupportedByModel {
                version: version.to_string(),
                what: "has no embedding to compare by; name a version that has or is paired with one".to_owned(),
            }),
        }
    }

    /// The embedding space that a reference means now: `{version}#{layer}`; of a version alone, the space that it is
    /// paired with, or its own first; and nothing for that of the default model's champion.
    ///
    /// # Errors
    /// When there is no such version or layer.
    pub(super) async fn resolve_space(&self, reference: &SpaceRef) -> Result<EmbeddingSpace, AppError> {
        let version = self.resolve(reference.version.as_ref())?;
        let manifest = self.manifest(&version).await?;
        let paired = manifest.preprocessing.as_ref().and_then(|p| p.face_chip.as_ref()).map(|c| &c.embedding_space);
        let space = match (&reference.layer, paired) {
            (Some(layer), _) => format!("{version}#{layer}"),
            (None, Some(paired)) if !paired.is_empty() => paired.clone(),
            (None, _) => self.first_space(&version).await?,
        };
        let space = EmbeddingSpace::parse("embedding_space", &space)?;
        self.dimensions(&space).await?;
        Ok(space)
    }

    /// How many numbers a vector of a space has.
    ///
    /// # Errors
    /// When there is no such version, or it has no such layer.
    pub(super) async fn dimensions(&self, space: &EmbeddingSpace) -> Result<usize, AppError> {
        let version = &space.version;
        let layers = &self.manifest(version).await?.embedding_layers;
        if let Some(known) = layers.iter().find(|known| known.layer == *space.layer) {
            return Ok(known.dimensions as usize);
        }
        let known: Vec<_> = layers.iter().map(|known| known.layer.as_str()).collect();
        let what = match known.as_slice() {
            [] => "has no embedding layers".to_owned(),
            known => format!("has no embedding layer {:?}; it has: {}", space.layer, known.join(", ")),
        };
        Err(AppError::UnsupportedByModel { version: version.to_string(), what })
    }

    /// Reads the aliases anew, after a change in the registry.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(super) async fn refresh(&self) -> Result<(), AppError> {
        let models = self.clone();
        blocking(move || models.refresh_now()).await
    }

    /// As [`Models::refresh`], on a blocking thread.
    ///
    /// # Errors
    /// As [`Models::refresh`].
    pub(super) fn refresh_now(&self) -> Result<(), AppError> {
        let _turn = lock(&self.shared.refreshing);
        self.shared.aliases.store(Arc::new(read_aliases(&self.shared.registry)?));
        Ok(())
    }

    /// Unloads a version that nothing needs any more, once its calls have ended.
    fn retire(&self, version: VersionName) {
        let models = self.clone();
        tokio::spawn(async move {
            let _turn = models.turn(&version).await;
            // What cannot be read is damage that others tell of; what it may need stays.
            if matches!(models.needed_by(&version).await, Ok(None)) {
                models.shared.serving.unload(&version.to_string()).await;
                tracing::info!(%version, "unloaded: nothing needs it");
                let partners = models.manifest(&version).await.ok().and_then(|manifest| partners(&manifest).ok());
                partners.into_iter().flatten().for_each(|partner| models.retire(partner));
            }
        });
    }

    /// The aliases that point at a version now.
    #[must_use]
    pub(super) fn aliases_of(&self, version: &VersionName) -> Vec<String> {
        let aliases = self.shared.aliases.load();
        let of_model = aliases.get(&version.model);
        of_model
            .into_iter()
            .flat_map(|known| &known.aliases)
            .filter(|(_, number)| **number == version.number)
            .map(|(alias, _)| alias.to_string())
            .collect()
    }

    /// What keeps a version loaded: an alias, a collection, or another version that is kept.
    async fn needed_by(&self, version: &VersionName) -> Result<Option<String>, AppError> {
        let mut looked_at = vec![version.clone()];
        let mut next = 0;
        while let Some(one) = looked_at.get(next).cloned() {
            next += 1;
            let by = match self.aliases_of(&one).first() {
                Some(alias) => Some(format!("the alias {alias}")),
                None => {
                    let collection = self.shared.index.collection_of_version(&one);
                    collection.map(|collection| format!("collections/{collection}"))
                }
            };
            if let Some(by) = by {
                return Ok(Some(if one == *version { by } else { one.to_string() }));
            }
            let registry = Arc::clone(&self.shared.registry);
            let dependents = blocking(move || Ok(registry.dependents(&one)?)).await?;
            for dependent in dependents {
                if !looked_at.contains(&dependent) {
                    looked_at.push(dependent);
                }
            }
        }
        Ok(None)
    }

    /// Frees a version's memory.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] while an alias points at it, a collection compares with it, or a version works with it of
    /// which one of these is true.
    pub async fn unload_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        let version = self.resolve(Some(reference))?;
        let manifest = self.manifest(&version).await?;
        let _turn = self.turn(&version).await;
        if let Some(by) = self.needed_by(&version).await? {
            return Err(in_use(&version, by));
        }
        self.shared.serving.unload(&version.to_string()).await;
        Ok(self.version_to_proto(&manifest))
    }

    /// Forgets a version and its weights.
    ///
    /// # Errors
    /// When there is no such version; [`RegistryError::InUse`] while an alias, a collection or another version needs it.
    pub async fn delete_version(&self, _: &Call, version: VersionName) -> Result<(), AppError> {
        self.manifest(&version).await?;
        let models = self.clone();
        detached(async move {
            let _turn = models.turn(&version).await;
            if let Some(collection) = models.shared.index.collection_of_version(&version) {
                return Err(in_use(&version, format!("collections/{collection}")));
            }
            let (registry, name) = (Arc::clone(&models.shared.registry), version.clone());
            blocking(move || Ok(registry.delete_version(&name)?)).await?;
            lock(&models.shared.manifests).remove(&version);
            lock(&models.shared.broken).remove(&version);
            models.shared.serving.unload(&version.to_string()).await;
            Ok(())
        })
        .await
    }

    /// What a version is, for callers.
    #[must_use]
    pub(super) fn version_to_proto(&self, record: &VersionRecord) -> v1::ModelVersion {
        let version = name_of(record);
        let name = version.to_string();
        v1::ModelVersion {
            create_time: record.create_time,
            architecture: record.architecture,
            heads: record.heads.clone(),
            image_size_px: record.preprocessing.as_ref().map_or(0, |p| p.image_size_px as i32),
            metrics: record.metrics.clone(),
            embedding_spaces: record
                .embedding_layers
                .iter()
                .map(|layer| v1::EmbeddingSpace {
                    name: format!("{name}#{}", layer.layer),
                    dimensions: layer.dimensions as i32,
                })
                .collect(),
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
            face_reader: face_reader(record),
            identity_calibration: record.identity.clone(),
            digest: super::hex(&record.digest),
            load_state: match self.shared.serving.state(&name) {
                LoadState::Unloaded => v1::LoadState::Unloaded,
                LoadState::Loading => v1::LoadState::Loading,
                LoadState::Loaded => v1::LoadState::Loaded,
                LoadState::Failed => v1::LoadState::Failed,
            }
            .into(),
            weight_bytes: crate::registry::weight_bytes(record) as i64,
            aliases: self.aliases_of(&version),
            name,
        }
    }
}

fn read_aliases(registry: &Registry) -> Result<Aliases, AppError> {
    let mut aliases = Aliases::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let views = registry.list_models(after.as_deref(), 256)?;
        let Some(last) = views.last() else { return Ok(aliases) };
        after = Some(last.record.id.clone().into_bytes());
        for view in views {
            let model = ModelId::parse("model", &view.record.id)?;
            let champion =
                view.aliases.get(&AliasName::champion()).map(|&number| VersionName { model: model.clone(), number });
            // A damaged champion is named when it is asked for.
            let answers =
                champion.is_some_and(|v| registry.get_version(&v).is_ok_and(|record| !record.heads.is_empty()));
            aliases.insert(model, Known { aliases: view.aliases, answers });
        }
    }
}

fn model_to_proto(view: &ModelView) -> v1::Model {
    let name = format!("models/{}", view.record.id);
    v1::Model {
        create_time: view.record.create_time,
        aliases: view.aliases.iter().map(|(alias, n)| (alias.to_string(), format!("{name}/versions/{n}"))).collect(),
        latest_version: view.record.latest_version as i64,
        name,
    }
}

fn face_reader(record: &VersionRecord) -> Option<v1::FaceReader> {
    let chip = record.preprocessing.as_ref()?.face_chip.as_ref()?;
    let embedder = chip.embedding_space.split('#').next().unwrap_or_default();
    Some(v1::FaceReader {
        detector: chip.detector.clone(),
        embedder: embedder.to_owned(),
        thresholds: record.thresholds,
    })
}

fn in_use(version: &VersionName, by: String) -> AppError {
    RegistryError::InUse { what: version.to_string(), by }.into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps behind these locks are whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
