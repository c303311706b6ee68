//! Loads and unloads versions.
//!
//! At most one load or unload of a version runs at a time. A failed version is retried once per back-off, not for every
//! call; calls meanwhile get its error and the time to wait. An operator's load is tried at once.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, mpsc::UnboundedReceiver};

use super::{Holder, Models, Pin, Shared, pins::Pins};
use crate::{
    app::{AppError, Call, blocking, detached},
    names::{ModelRef, VersionName},
    nn::TensorData,
    proto::v1,
    registry::{Reads, RegistryError, Version},
    serving::{EngineSource, InputKind, LoadState, ServeError},
};

/// The back-off after the first failure; it doubles with each further failure, up to the longest.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// The state of versions that are loaded, being loaded, or failed lately.
#[derive(Default)]
pub(super) struct Loading {
    entries: Mutex<HashMap<VersionName, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// Locked during a load, an unload, and a change that adds a lasting holder.
    lifecycle: Arc<tokio::sync::Mutex<()>>,
    version: Option<Arc<Version>>,
    is_loaded: bool,
    /// True if the last load failed.
    has_failed: bool,
    /// Pins on the versions that this one depends on; held while this version is loaded or due for a retry.
    dependencies: Vec<Pin>,
    failure: Option<Failure>,
}

impl Entry {
    /// Returns true if the entry has information: the version is loaded, failed lately, or is being changed.
    fn has_information(&self, now: Instant) -> bool {
        let failed_lately = self.failure.as_ref().is_some_and(|f| f.until + LONGEST_BACK_OFF > now);
        self.is_loaded || failed_lately || Arc::strong_count(&self.lifecycle) > 1
    }
}

/// The last error and the time of the next attempt.
struct Failure {
    error: Arc<AppError>,
    n_failures: u32,
    until: Instant,
}

impl Failure {
    fn refusal(&self, version: &VersionName, now: Instant) -> AppError {
        AppError::VersionFailed {
            version: version.clone(),
            source: Arc::clone(&self.error),
            retry_after: self.until.saturating_duration_since(now).max(Duration::from_millis(1)),
        }
    }
}

impl Loading {
    /// Returns the error of a failed version that is not due for a retry.
    fn refusal(&self, version: &VersionName) -> Option<AppError> {
        let now = Instant::now();
        let entries = self.entries.lock();
        let failure = entries.get(version)?.failure.as_ref().filter(|failure| failure.until > now)?;
        Some(failure.refusal(version, now))
    }

    /// Returns the lock of a version's lifecycle. Also removes entries without information or holders.
    fn lifecycle(&self, version: &VersionName, pins: &Pins) -> Arc<tokio::sync::Mutex<()>> {
        let mut entries = self.entries.lock();
        if !entries.contains_key(version) {
            let now = Instant::now();
            entries.retain(|version, entry| entry.has_information(now) || pins.is_held(version));
        }
        Arc::clone(&entries.entry(version.clone()).or_default().lifecycle)
    }

    /// Records a successful load, with pins on the version's dependencies.
    fn loaded(&self, version: Arc<Version>, dependencies: Vec<Pin>) {
        let mut entries = self.entries.lock();
        let entry = entries.entry(version.name.clone()).or_default();
        (entry.is_loaded, entry.has_failed, entry.failure) = (true, false, None);
        (entry.version, entry.dependencies) = (Some(version), dependencies);
    }

    /// Records an unload; returns the pins that the version held.
    fn unloaded(&self, version: &VersionName) -> Vec<Pin> {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(version) else { return Vec::new() };
        (entry.is_loaded, entry.has_failed, entry.version, entry.failure) = (false, false, None, None);
        std::mem::take(&mut entry.dependencies)
    }

    /// Returns whether the version's last load failed, and the version's dependencies as far as they are known.
    fn last_load(&self, version: &VersionName) -> (bool, Vec<VersionName>) {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(version) else { return (false, Vec::new()) };
        (entry.has_failed, entry.dependencies.iter().map(|pin| pin.version().clone()).collect())
    }

    /// Records a failed load; returns the error for callers. Overload and a stopping server do not count: they are not
    /// the version's fault. A failure that a retry would repeat starts a back-off.
    fn failed(&self, version: &VersionName, error: AppError, dependencies: Vec<Pin>) -> AppError {
        if matches!(error, AppError::Serve(ServeError::Overloaded { .. } | ServeError::Stopping)) {
            return error;
        }
        if !fails_again(&error) {
            self.entries.lock().entry(version.clone()).or_default().has_failed = true;
            return error;
        }
        tracing::error!(%version, %error, "a version cannot be loaded");
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let entry = entries.entry(version.clone()).or_default();
        let n_failures = entry.failure.as_ref().map_or(0, |failure| failure.n_failures);
        let back_off = FIRST_BACK_OFF.saturating_mul(1 << n_failures.min(16)).min(LONGEST_BACK_OFF);
        let failure = Failure { error: Arc::new(error), n_failures: n_failures + 1, until: now + back_off };
        let refusal = failure.refusal(version, now);
        (entry.is_loaded, entry.has_failed, entry.failure) = (false, true, Some(failure));
        entry.dependencies = dependencies;
        refusal
    }
}

/// Returns true if a retry would fail the same way, at the same cost.
fn fails_again(error: &AppError) -> bool {
    matches!(
        error,
        AppError::Registry(RegistryError::CorruptVersion { .. })
            | AppError::Nn(_)
            | AppError::Serve(
                ServeError::GoldenMismatch { .. }
                    | ServeError::WeightsMismatch { .. }
                    | ServeError::EngineFailed { .. }
            )
    )
}

/// Unloads versions that lost their last holder, until the models are dropped.
pub(super) fn unload_free_versions(shared: &Arc<Shared>, mut freed: UnboundedReceiver<VersionName>) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        while let Some(version) = freed.recv().await {
            let Some(models) = Weak::upgrade(&shared).map(|shared| Models { shared }) else { return };
            // In its own task, because an unload waits for the running batch, and other versions should not.
            tokio::spawn(async move {
                let _lifecycle = models.lock_lifecycle(&version).await;
                let was_there = models.shared.serving.state(&version) != LoadState::Unloaded;
                // It may have a new holder by now.
                if models.unload_now(&version).await.is_ok() && was_there {
                    tracing::info!(%version, "unloaded: nothing needs it");
                }
            });
        }
    });
}

impl Models {
    /// Returns true if a version cannot answer: its last load failed, it fails every photo, or one of its dependencies
    /// is broken. A version not loaded yet is not broken: the first call loads it.
    pub(crate) fn is_broken(&self, version: &VersionName) -> bool {
        let (has_failed, dependencies) = self.shared.loading.last_load(version);
        let state = self.shared.serving.state(version);
        has_failed && state != LoadState::Loaded
            || state == LoadState::Failed
            || dependencies.iter().any(|dependency| self.is_broken(dependency))
    }

    /// Returns a version, from memory or the registry.
    ///
    /// # Errors
    /// When there is no such version or its record is damaged.
    pub(in crate::app) async fn version(&self, name: &VersionName) -> Result<Arc<Version>, AppError> {
        let known = self.shared.loading.entries.lock().get(name).and_then(|entry| entry.version.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        let (registry, of_version) = (Arc::clone(&self.shared.registry), name.clone());
        let version = Arc::new(blocking(move || Ok(registry.get_version(&of_version)?)).await?);
        if let Some(entry) = self.shared.loading.entries.lock().get_mut(name) {
            entry.version = Some(Arc::clone(&version));
        }
        Ok(version)
    }

    /// Loads every version with a lasting holder. A version that cannot be loaded is logged and skipped.
    pub(in crate::app) async fn load_needed(&self) {
        let mut needed = self.shared.pins.needed();
        needed.sort();
        for version in needed {
            if let Err(error) = self.ensure_loaded(&version).await {
                tracing::error!(%version, %error, "cannot load a version that an alias or a collection needs");
            }
        }
    }

    /// Loads a version unless it is loaded. The caller must hold a pin on it.
    ///
    /// # Errors
    /// When there is no such version, its weights are damaged, or the device refuses it; [`AppError::VersionFailed`]
    /// during the back-off after such an error.
    pub(in crate::app) async fn ensure_loaded(&self, version: &VersionName) -> Result<(), AppError> {
        if self.shared.serving.state(version) == LoadState::Loaded {
            return Ok(());
        }
        // In its own task: if the caller leaves, the load continues for the next caller.
        let (models, version) = (self.clone(), version.clone());
        detached(async move {
            let _lifecycle = models.lock_lifecycle(&version).await;
            match models.shared.loading.refusal(&version) {
                Some(refusal) => Err(refusal),
                None => models.load_now(&version).await,
            }
        })
        .await
    }

    /// Locks a version's lifecycle. A holder may also lock the version's dependencies, never others.
    pub(super) async fn lock_lifecycle(&self, version: &VersionName) -> OwnedMutexGuard<()> {
        self.shared.loading.lifecycle(version, &self.shared.pins).lock_owned().await
    }

    /// Loads a version and, before it, its dependencies. The caller has locked its lifecycle.
    pub(super) fn load_now<'a>(&'a self, name: &'a VersionName) -> BoxFuture<'a, Result<(), AppError>> {
        Box::pin(async move {
            if self.shared.serving.state(name) == LoadState::Loaded {
                return Ok(());
            }
            let mut dependencies = Vec::new();
            let loaded = match self.load_with(name, &mut dependencies).await {
                Ok(version) => {
                    self.shared.loading.loaded(version, dependencies);
                    Ok(())
                }
                Err(error) => Err(self.shared.loading.failed(name, error, dependencies)),
            };
            self.changed();
            loaded
        })
    }

    async fn load_with(&self, name: &VersionName, dependencies: &mut Vec<Pin>) -> Result<Arc<Version>, AppError> {
        let version = self.version(name).await?;
        // This cannot recurse forever: dependencies are registered before their dependents, so there is no cycle.
        for dependency in version.dependencies() {
            dependencies.push(self.shared.pins.hold(&dependency, Holder::Version(name.clone())).await);
            self.ensure_loaded(&dependency).await?;
        }
        loop {
            let (registry, of_version) = (Arc::clone(&self.shared.registry), Arc::clone(&version));
            let tensors = blocking(move || Ok(registry.load_tensors(&of_version)?)).await?;
            let loaded = self.shared.serving.load(engine_source(&version, tensors.clone())).await;
            // If a cache file was truncated while being read, the next read restores it from the store.
            if loaded.is_ok() || tensors.iter().all(TensorData::is_intact) {
                loaded?;
                return Ok(version);
            }
        }
    }

    /// Unloads a version after the calls in progress released it. The caller has locked its lifecycle.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] while it has a lasting holder.
    async fn unload_now(&self, version: &VersionName) -> Result<(), AppError> {
        self.unload_after(version, async { Ok(()) }).await
    }

    /// As [`Models::unload_now`]. While no call can use the version, first awaits `last`; if that fails, the version
    /// stays loaded.
    async fn unload_after(
        &self,
        version: &VersionName,
        last: impl Future<Output = Result<(), AppError>>,
    ) -> Result<(), AppError> {
        let in_use = |by: Holder| RegistryError::InUse { what: version.to_string(), by: by.to_string() };
        let closing = self.shared.pins.close(version).map_err(in_use)?;
        closing.drained().await;
        last.await?;
        self.shared.serving.unload(version).await;
        drop(self.shared.loading.unloaded(version));
        Ok(())
    }

    /// Loads a version for an operator: without back-off.
    ///
    /// # Errors
    /// When there is no such version, its weights are damaged, or the device refuses it.
    pub(crate) async fn load_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        let held = self.hold(Some(reference)).await?;
        let (models, name) = (self.clone(), held.version.name.clone());
        detached(async move {
            let _lifecycle = models.lock_lifecycle(&name).await;
            models.load_now(&name).await
        })
        .await?;
        Ok(self.with_state(&held.version.name, held.version.describe()))
    }

    /// Unloads a version for an operator.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] while an alias, a collection or a loaded version depends on it.
    pub(crate) async fn unload_version(&self, _: &Call, reference: &ModelRef) -> Result<v1::ModelVersion, AppError> {
        let version = self.version(&self.resolve(Some(reference))?).await?;
        let (models, name) = (self.clone(), version.name.clone());
        detached(async move {
            let _lifecycle = models.lock_lifecycle(&name).await;
            models.unload_now(&name).await
        })
        .await?;
        Ok(self.with_state(&version.name, version.describe()))
    }

    /// Deletes a version and its weights.
    ///
    /// # Errors
    /// When there is no such version; [`RegistryError::InUse`] while an alias, a collection or another version depends
    /// on it.
    pub(crate) async fn delete_version(&self, _: &Call, version: VersionName) -> Result<(), AppError> {
        let models = self.clone();
        detached(async move {
            let _lifecycle = models.lock_lifecycle(&version).await;
            let (registry, name) = (Arc::clone(&models.shared.registry), version.clone());
            models.unload_after(&version, blocking(move || Ok(registry.delete_version(&name)?))).await
        })
        .await
    }
}

/// Describes a version for the device.
pub(crate) fn engine_source(version: &Version, tensors: Vec<TensorData>) -> EngineSource {
    EngineSource {
        version: version.name.clone(),
        network: version.network.clone(),
        input: match &version.reads {
            Reads::Photos { side_px, .. } => InputKind::Square { side_px: *side_px },
            Reads::Faces { chip, .. } => InputKind::Square { side_px: chip.side_px },
            Reads::Finds(settings) => InputKind::Photo(settings.clone()),
        },
        embedding_layers: version.embedding_layers.iter().map(|layer| layer.name.clone()).collect(),
        golden: version.golden.clone(),
        tensors,
    }
}
