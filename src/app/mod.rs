//! Use cases: each combines the layers below for one kind of call. Depends on no transport.
//!
//! [`App`] assembles everything on top of the opened store. Handlers call [`predict()`], [`Faces`], [`Models`],
//! [`Runs`]. Every use case takes the [`Call`] first, then parsed names, and returns messages of the contract. A change
//! that may be retried goes through [`Idempotent`].

mod call;
mod compare;
mod error;
mod faces;
mod fair_semaphore;
mod health;
mod idempotency;
mod import;
mod models;
mod paging;
mod photos;
mod predict;
mod predictions;
mod published;
mod registering;
mod runs;
mod thresholds;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub(crate) use call::{Call, Caller};
pub(crate) use compare::Comparison;
pub(crate) use error::{AppError, ERROR_DOMAIN, reason_name};
pub(crate) use faces::{Enrolment, FaceSource, Faces, SearchTarget};
pub(crate) use health::Health;
pub(crate) use idempotency::Idempotent;
pub(crate) use import::Import;
pub(crate) use models::Models;
use paging::PageKey;
pub(crate) use paging::{Page, PageLimits, PageRequest, Paged};
pub(crate) use photos::{Photos, Wants};
pub(crate) use predict::predict;
pub(crate) use runs::{NewRun, RunOperation, RunSettings, Runs};
pub(crate) use thresholds::signals_of;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, StoreConfig},
    error::Kind,
    names::ModelRef,
    nn,
    proto::store::EmbeddingLayer,
    registry::{Registry, RegistryError},
    serving::{EngineLoader, PixelPool, PixelPoolSettings, ServingPool, ServingSettings, TorchEngineLoader},
    similarity::{SimilarityIndex, SimilaritySettings},
    store::{self, CachedBlobs, STORE_KEY_FILE, SledSettings, Store, StoreBlobs, StoreState, SweepReport},
    training::{Launcher, ProcessLauncher, Roots},
    vision::DecodeLimits,
    wiping::wipe_stack,
};

/// A whole server, apart from its transport.
pub(crate) struct App {
    /// Models, versions, aliases.
    pub models: Models,
    /// Reads photos.
    pub photos: Photos,
    /// Collections and faces.
    pub faces: Faces,
    /// Training runs.
    pub runs: Runs,
    /// The page sizes of every list.
    pub page_limits: PageLimits,
    /// Cancelled when the server begins to stop.
    pub stopping: CancellationToken,
    roots: Roots,
    serving: ServingPool,
    health: watch::Sender<Health>,
    store_state: watch::Receiver<StoreState>,
    store: Arc<dyn Store>,
    /// Allows one import at a time.
    imports: Arc<Semaphore>,
}

/// The interval between deletions of old answers.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// The parts of an [`App`] that tests replace.
pub(crate) struct Backends {
    /// Makes engines for versions.
    pub engines: Arc<dyn EngineLoader>,
    /// Starts training processes.
    pub launcher: Arc<dyn Launcher>,
}

impl App {
    /// Opens the configured data folder. Engines use libtorch; training runs in child processes.
    ///
    /// # Errors
    /// When the store, the device or a training root cannot be opened; the message says what to do. [`AppError::Stopping`] when
    /// `stopping` is cancelled meanwhile; the application owns that token from then on.
    pub(crate) async fn open(config: &Config, stopping: CancellationToken) -> Result<Self, AppError> {
        let backends = Backends {
            engines: Arc::new(TorchEngineLoader::new(&config.serving.device)?),
            launcher: Arc::new(ProcessLauncher::this_binary()?),
        };
        Self::open_with(config, backends, stopping).await
    }

    /// Opens the configured data folder with these backends.
    ///
    /// # Errors
    /// As [`App::open`].
    pub(crate) async fn open_with(
        config: &Config,
        backends: Backends,
        stopping: CancellationToken,
    ) -> Result<Self, AppError> {
        let published_dir = config.models.published_dir.clone();
        let config = config.clone();
        // Blocking, because it reads and verifies the whole store.
        let app = blocking(move || Self::open_blocking(&config, backends, stopping)).await?;
        if !published_dir.as_os_str().is_empty() {
            let registered = published::register_published(&app.models, &app.serving, &published_dir);
            app.stopping.run_until_cancelled(registered).await.unwrap_or(Err(AppError::Stopping))?;
        }
        Ok(app)
    }

    fn open_blocking(config: &Config, backends: Backends, stopping: CancellationToken) -> Result<Self, AppError> {
        let data_dir = &config.data_dir;
        let store: Arc<dyn Store> = store::open(&data_dir.join("store"), &store_settings(config))?;
        let blobs = CachedBlobs::open(data_dir.join("cache").join("blobs"), StoreBlobs::new(Arc::clone(&store)));
        let registry = Arc::new(Registry::new(Arc::clone(&store), Arc::new(blobs)));
        match registry.sweep_orphans() {
            Ok(swept) if swept == SweepReport::default() => {}
            Ok(swept) => tracing::info!(?swept, "deleted the blobs that no version names"),
            // A server with a full disk or a damaged page still answers.
            Err(RegistryError::Store(error)) if error.is_refusal() || error.kind() == Kind::Corrupt => {
                tracing::error!(%error, "blobs that no version names are not deleted");
            }
            Err(error) => return Err(error.into()),
        }
        let roots = Roots::new(config.training.roots.clone())?;
        let serving = ServingPool::start(
            ServingSettings {
                n_threads: config.serving.threads,
                queue_capacity: config.serving.queue_capacity,
                queue_bytes: config.serving.queue_bytes,
                max_batch: config.serving.max_batch,
                memory_budget_bytes: Some(config.serving.memory_budget_bytes),
                ..ServingSettings::default()
            },
            backends.engines,
        )?;
        let pixels = PixelPool::start(PixelPoolSettings {
            n_threads: config.images.decode_threads,
            queue_capacity: config.images.decode_queue,
            limits: DecodeLimits { max_pixels: config.images.max_pixels, ..DecodeLimits::default() },
        })
        .map_err(|e| AppError::Internal(format!("starting the threads of the pixel pool: {e}")))?;
        let default_model = match config.serving.default_model.as_str() {
            "" => None,
            name => Some(ModelRef::parse("serving.default_model", name)?),
        };
        let index = Arc::new(SimilarityIndex::open(
            Arc::clone(&store),
            SimilaritySettings {
                max_k: config.similarity.max_k,
                exact_up_to: config.similarity.exact_up_to,
                ..SimilaritySettings::default()
            },
        )?);
        let models = Models::open(registry, serving.clone(), default_model)?;
        let photos =
            Photos::new(models.clone(), pixels, serving.clone(), config.faces.clone(), config.serving.queue_capacity);
        let faces = Faces::new(Arc::clone(&store), index, models.clone(), photos.clone());
        let runs = Runs::open(
            Arc::clone(&store),
            models.clone(),
            backends.launcher,
            roots.clone(),
            stopping.clone(),
            RunSettings {
                max_concurrent: config.training.max_concurrent_runs,
                max_queued: config.training.max_queued_runs,
                device: config.serving.device.clone(),
                n_threads: config.training.threads,
                scratch_dir: data_dir.join("scratch"),
                max_pixels: config.images.max_pixels,
            },
        )?;
        let page_limits = PageLimits {
            default_size: config.pages.default_size,
            max_size: config.pages.max_size,
            key: PageKey::of(&*store)?,
        };
        Ok(Self {
            models,
            photos,
            faces,
            runs,
            page_limits,
            stopping,
            roots,
            serving,
            health: watch::Sender::new(Health::HEALTHY),
            store_state: store.state(),
            store,
            imports: Arc::new(Semaphore::new(1)),
        })
    }

    /// Deletes the answers of old request ids, now and every hour, until the server stops.
    pub(crate) async fn forget_old_requests(&self) {
        let mut hours = tokio::time::interval(FORGET_EVERY);
        while self.stopping.run_until_cancelled(hours.tick()).await.is_some() {
            let store = Arc::clone(&self.store);
            match blocking(move || idempotency::forget_old(&*store, SystemTime::now())).await {
                Ok(0) => {}
                Ok(n_forgotten) => tracing::info!(n_forgotten, "deleted the answers of old request ids"),
                Err(error) => tracing::error!(%error, "cannot delete the answers of old request ids"),
            }
        }
    }

    /// Ends the runs and stores their ends. No run starts afterwards.
    pub(crate) async fn stop_runs(&self) {
        self.runs.stop().await;
    }

    /// Ends the runs, stores their ends, and waits for the device's work in progress, until `deadline`. Returns true if
    /// all ended by then. The process's exit ends the rest.
    pub(crate) async fn close(&self, deadline: Instant) -> bool {
        self.stopping.cancel();
        let runs_ended = tokio::time::timeout_at(deadline.into(), self.stop_runs()).await.is_ok();
        if !runs_ended {
            tracing::warn!("a training run did not end in time; it is marked as interrupted at the next start");
        }
        let serving = self.serving.clone();
        let ended = async {
            serving.drain(deadline.saturating_duration_since(Instant::now())).await;
            // Joins threads that may be inside a kernel, which cannot be interrupted.
            tokio::task::spawn_blocking(move || serving.shutdown()).await
        };
        runs_ended && tokio::time::timeout_at(deadline.into(), ended).await.is_ok()
    }
}

/// Returns the engine's settings of a configuration.
#[must_use]
pub(crate) fn store_settings(config: &Config) -> SledSettings {
    let StoreConfig { cache_bytes, reserve_bytes, key_file } = &config.store;
    let key_file =
        if key_file.as_os_str().is_empty() { config.data_dir.join(STORE_KEY_FILE) } else { key_file.clone() };
    SledSettings { cache_bytes: *cache_bytes, reserve_bytes: *reserve_bytes, key_file: Some(key_file) }
}

/// Returns the layers of the ResNets whose outputs can be compared.
fn embedding_layers() -> Vec<EmbeddingLayer> {
    let layer = |(layer, dimensions): (&str, u32)| EmbeddingLayer { layer: layer.to_owned(), dimensions };
    nn::embedding_layers().into_iter().map(layer).collect()
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AppError> + Send + 'static,
) -> Result<T, AppError> {
    let and_wipe = || {
        let done = work();
        // The thread may be idle for long.
        wipe_stack();
        done
    };
    tokio::task::spawn_blocking(and_wipe)
        .await
        .unwrap_or_else(|e| Err(AppError::Internal(format!("the blocking work of a use case failed: {e}"))))
}

/// Runs a change to its end even if its caller leaves, so that store and memory stay consistent.
pub(crate) async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, AppError>> + Send + 'static,
) -> Result<T, AppError> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|e| Err(AppError::Internal(format!("the change of a use case failed: {e}"))))
}
