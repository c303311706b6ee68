//! Models, versions and aliases: which version answers a call, and loading it first.
//!
//! Resolving an alias reads a map in memory, never the store, and returns the alias's pin. The map is replaced as a
//! whole. No call is lost when an alias moves: the new version is loaded, warmed and verified; then the alias moves;
//! the old version is unloaded after the calls that hold it. [`pins`] defines what keeps a version loaded; [`loading`]
//! loads and unloads.

mod aliases;
mod loading;
mod pins;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::{
    aliases::{Aliases, read_aliases},
    loading::Loading,
    pins::Pins,
};
pub(crate) use self::{
    loading::engine_source,
    pins::{Holder, Pin},
};
use super::{AppError, Call, Idempotent, Page, Paged, blocking, detached};
use crate::{
    names::{AliasName, EmbeddingSpace, ModelId, ModelRef, SpaceRef, VersionName},
    proto::v1,
    registry::{Registry, RegistryError, Version},
    serving::{LoadState, ServingPool},
};

/// The default model if several have heads; it is the published model's name.
const PREFERRED_MODEL: &str = "face";

/// The models of a server.
#[derive(Clone)]
pub(crate) struct Models {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<Registry>,
    serving: ServingPool,
    default_model: Option<ModelRef>,
    aliases: ArcSwap<Aliases>,
    /// Locked while the alias map is read again, so that an older reading never replaces a newer one.
    refreshing: Mutex<()>,
    pins: Arc<Pins>,
    loading: Loading,
    /// Notified when an alias or a collection changes, and when a load ends.
    changes: watch::Sender<()>,
}

/// The version of a call, with a pin.
#[derive(Clone)]
pub(crate) struct Resolved {
    /// The parsed version.
    pub(crate) version: Arc<Version>,
    /// Keeps it loaded during the call.
    _pin: Pin,
}

impl Models {
    /// Opens the registry's models; `serving` runs them.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) fn open(
        registry: Arc<Registry>,
        serving: ServingPool,
        default_model: Option<ModelRef>,
    ) -> Result<Self, AppError> {
        let (free, freed) = tokio::sync::mpsc::unbounded_channel();
        let changes = watch::Sender::new(());
        let pins = Pins::new(free, changes.clone());
        let aliases = read_aliases(&registry, &Aliases::new(), &pins)?;
        let shared = Arc::new(Shared {
            registry,
            serving,
            default_model,
            aliases: ArcSwap::from_pointee(aliases),
            refreshing: Mutex::default(),
            pins,
            loading: Loading::default(),
            changes,
        });
        loading::unload_free_versions(&shared, freed);
        Ok(Self { shared })
    }

    /// Returns the registry.
    #[must_use]
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// Returns the version that a reference means now; `None` means the default model's champion.
    ///
    /// # Errors
    /// [`RegistryError`] for an unknown model or alias.
    pub(crate) fn resolve(&self, reference: Option<&ModelRef>) -> Result<VersionName, AppError> {
        Ok(self.resolve_alias(reference)?.0)
    }

    /// Returns the version that a reference means, and the alias's pin if it names one.
    fn resolve_alias(&self, reference: Option<&ModelRef>) -> Result<(VersionName, Option<Pin>), AppError> {
        let default;
        let reference = match reference {
            Some(reference) => reference,
            None => {
                default = self.default_ref()?;
                &default
            }
        };
        match reference {
            ModelRef::Version(version) => Ok((version.clone(), None)),
            ModelRef::Alias { model, alias } => {
                let aliases = self.shared.aliases.load();
                let of_model =
                    aliases.get(model).ok_or_else(|| RegistryError::ModelNotFound { model: model.clone() })?;
                let pin = of_model
                    .aliases
                    .get(alias)
                    .ok_or_else(|| RegistryError::AliasNotFound { model: model.clone(), alias: alias.clone() })?;
                Ok((pin.version().clone(), Some(pin.clone())))
            }
        }
    }

    fn default_ref(&self) -> Result<ModelRef, AppError> {
        if let Some(configured) = &self.shared.default_model {
            return Ok(configured.clone());
        }
        let champion = |model: &ModelId| ModelRef::Alias { model: model.clone(), alias: AliasName::champion() };
        let aliases = self.shared.aliases.load();
        let answering: Vec<_> = aliases.iter().filter(|(_, known)| known.has_heads).map(|(model, _)| model).collect();
        // The published model wins, whatever is trained or imported besides.
        if let Some(model) = answering.iter().find(|model| model.as_bytes() == PREFERRED_MODEL.as_bytes()) {
            return Ok(champion(model));
        }
        match answering.as_slice() {
            [only] => Ok(champion(only)),
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

    /// Resolves a reference and pins the version for a call, without loading it.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub(in crate::app) async fn hold(&self, reference: Option<&ModelRef>) -> Result<Resolved, AppError> {
        let (name, pin) = self.resolve_alias(reference)?;
        let pin = match pin {
            Some(pin) => pin,
            None => self.shared.pins.hold(&name, Holder::Call).await,
        };
        Ok(Resolved { version: self.version(&name).await?, _pin: pin })
    }

    /// Returns the versions that collections compare with.
    pub(crate) fn compared(&self) -> Vec<VersionName> {
        self.shared.pins.compared()
    }

    /// Pins a version for a collection that compares with it.
    pub(crate) fn hold_for_collection(&self, version: &VersionName, id: String) -> Pin {
        self.shared.pins.hold_now(version, Holder::Collection(id))
    }

    /// Points an alias at a version, or removes it.
    ///
    /// # Errors
    /// [`RegistryError::AliasMoved`] when the alias does not point at `expected`. Errors of a load, before anything has
    /// changed.
    pub(crate) async fn set_alias(
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
                models.version(version).await?;
                let lifecycle = models.lock_lifecycle(version).await;
                models.load_now(version).await?;
                Ok(Some(lifecycle))
            };
            let committing = models.clone();
            let number = target.as_ref().map(|version| version.number);
            // Stays locked until the alias holds the version.
            let commit = move |_lifecycle, once: &Idempotent| {
                let registry = committing.registry();
                let remember = |model: &crate::registry::Model| once.remember(&model.describe());
                let moved = registry.set_alias(&model, &alias, number, expected, remember)?;
                committing.refresh_now()?;
                Ok(moved.describe())
            };
            Ok(once.run(models.registry().store(), prepare, commit).await?.into_inner())
        })
        .await
    }

    /// Returns a model with its aliases.
    ///
    /// # Errors
    /// When there is no such model.
    pub(crate) async fn get(&self, _: &Call, model: ModelId) -> Result<v1::Model, AppError> {
        let registry = Arc::clone(&self.shared.registry);
        blocking(move || Ok(registry.get_model(&model)?.describe())).await
    }

    /// Returns a page of the models, by id.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn list(&self, _: &Call, page: Page) -> Result<Paged<v1::Model>, AppError> {
        let registry = Arc::clone(&self.shared.registry);
        blocking(move || {
            let rows = registry.list_models(page.after.as_deref(), page.limit())?;
            let paged = page.finish(rows, |model| model.id.as_bytes().to_vec());
            Ok(paged.map(|model| model.describe()))
        })
        .await
    }

    /// Returns a page of a model's versions, newest first.
    ///
    /// # Errors
    /// When there is no such model.
    pub(crate) async fn list_versions(
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
            Ok(page.finish(rows, |(name, _)| name.number.to_be_bytes().to_vec()))
        })
        .await?;
        Ok(paged.map(|(name, description)| self.with_state(&name, description)))
    }

    /// Returns a version, named by number or alias.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub(crate) async fn get_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        self.describe(self.resolve(Some(reference))?).await
    }

    /// Returns a version's description, with its load state and aliases.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub(in crate::app) async fn describe(&self, name: VersionName) -> Result<v1::ModelVersion, AppError> {
        let (registry, of_version) = (Arc::clone(&self.shared.registry), name.clone());
        let description = blocking(move || Ok(registry.describe_version(&of_version)?)).await?;
        Ok(self.with_state(&name, description))
    }

    /// Adds the load state and aliases to a version's description.
    pub(crate) fn with_state(&self, name: &VersionName, description: v1::ModelVersion) -> v1::ModelVersion {
        let load_state = match self.shared.serving.state(name) {
            LoadState::Unloaded => v1::LoadState::Unloaded,
            LoadState::Loading => v1::LoadState::Loading,
            LoadState::Loaded => v1::LoadState::Loaded,
            LoadState::Failed => v1::LoadState::Failed,
        };
        v1::ModelVersion { load_state: load_state.into(), aliases: self.aliases_of(name), ..description }
    }

    /// Resolves a reference to an embedding space. Without a layer, it means the space that the version is paired with,
    /// or else the version's first space. An empty reference means that of the default model's champion.
    ///
    /// # Errors
    /// When there is no such version or layer.
    pub(in crate::app) async fn resolve_space(&self, reference: &SpaceRef) -> Result<EmbeddingSpace, AppError> {
        let version = self.version(&self.resolve(reference.version.as_ref())?).await?;
        let space = match &reference.layer {
            Some(layer) => EmbeddingSpace { version: version.name.clone(), layer: Arc::clone(layer) },
            None => version.default_space().ok_or_else(|| no_embedding(&version.name))?,
        };
        self.dimensions(&space).await?;
        Ok(space)
    }

    /// Returns the number of components of a vector in a space.
    ///
    /// # Errors
    /// When there is no such version, or it has no such layer.
    pub(in crate::app) async fn dimensions(&self, space: &EmbeddingSpace) -> Result<usize, AppError> {
        let layers = &self.version(&space.version).await?.embedding_layers;
        if let Some(known) = layers.iter().find(|known| known.name == *space.layer) {
            return Ok(known.dimensions);
        }
        let known: Vec<_> = layers.iter().map(|known| known.name.as_str()).collect();
        let what = match known.as_slice() {
            [] => "has no embedding layers".to_owned(),
            known => format!("has no embedding layer {:?}; it has: {}", space.layer, known.join(", ")),
        };
        Err(AppError::UnsupportedByModel { version: space.version.to_string(), what })
    }

    /// Reads the aliases again, after a change in the registry. A version that lost its last alias is unloaded after
    /// its calls.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(in crate::app) async fn refresh(&self) -> Result<(), AppError> {
        let models = self.clone();
        blocking(move || models.refresh_now()).await
    }

    /// As [`Models::refresh`], for a blocking thread.
    ///
    /// # Errors
    /// As [`Models::refresh`].
    pub(crate) fn refresh_now(&self) -> Result<(), AppError> {
        let shared = &self.shared;
        let _refreshing = shared.refreshing.lock();
        let aliases = read_aliases(&shared.registry, &shared.aliases.load(), &shared.pins)?;
        shared.aliases.store(Arc::new(aliases));
        self.changed();
        Ok(())
    }

    /// Returns the aliases that point at a version now.
    #[must_use]
    pub(crate) fn aliases_of(&self, version: &VersionName) -> Vec<String> {
        let aliases = self.shared.aliases.load();
        let of_model = aliases.get(&version.model).into_iter().flat_map(|known| &known.aliases);
        of_model.filter(|(_, pin)| pin.version() == version).map(|(alias, _)| alias.to_string()).collect()
    }

    /// Returns a receiver that is notified when an alias or a collection changes, and when a load ends.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes.subscribe()
    }

    fn changed(&self) {
        self.shared.changes.send_replace(());
    }
}

/// The error for a version without an embedding to compare.
pub(crate) fn no_embedding(version: &VersionName) -> AppError {
    let what = "has no embedding to compare with; use a version that has one or is paired with one".to_owned();
    AppError::UnsupportedByModel { version: version.to_string(), what }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
