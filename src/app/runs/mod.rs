//! Training runs: start, watch, cancel, and recover after a restart.
//!
//! A run is a record in the store and, until it ends, a task that owns its child process. Only the task changes the
//! record. A finished run and its version are stored in one commit, so neither exists without the other. `feed.rs`
//! publishes events to watchers, `task.rs` runs one run from the queue to its end, `operations.rs` shows runs as
//! long-running operations.

mod feed;
mod operations;
mod task;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::SystemTime};

use feed::{Event, Feed, Watch};
use futures::stream::BoxStream;
pub(crate) use operations::RunOperation;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    AppError, Call, ERROR_DOMAIN, Idempotent, Models, Page, Paged, blocking, detached, idempotency::Answer, reason_name,
};
use crate::{
    names::{ModelId, ModelRef, RunId, VersionName},
    proto::{
        rpc,
        store::{RunEventRecord, RunRecord},
        v1::{self, watch_training_run_response::Event as Kind},
    },
    store::{Batch, Range, Store, StoreExt, Table, join_key},
    training::{DataSource, Launcher, Recipe, Roots},
};

/// The largest encoded recipe: it is part of the job and of every answer about its run.
const MAX_RECIPE_BYTES: usize = 256 << 10;

/// The longest error message of a run, in characters.
const MAX_END_CHARS: usize = 2_000;

/// The settings of training on this server.
#[derive(Clone, Debug)]
pub(crate) struct RunSettings {
    /// Maximum number of runs that train at once.
    pub max_concurrent: usize,
    /// Maximum number of runs that wait.
    pub max_queued: usize,
    /// The device: auto, cpu or cuda:N.
    pub device: String,
    /// Threads of a training process; 0: the number of cores.
    pub n_threads: u32,
    /// The folder for training processes' files; created if absent.
    pub scratch_dir: PathBuf,
    /// The most pixels of a training image that is decoded.
    pub max_pixels: u64,
}

/// The training runs of a server.
#[derive(Clone)]
pub(crate) struct Runs {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    models: Models,
    launcher: Arc<dyn Launcher>,
    roots: Roots,
    settings: RunSettings,
    slots: Arc<Semaphore>,
    active: Mutex<HashMap<String, Arc<Active>>>,
    /// Locked from counting the runs until the new one is counted, too.
    starting: Mutex<()>,
    tasks: TaskTracker,
    /// Cancelled to end the runs.
    stopping: CancellationToken,
    /// Cancelled earlier, when the server begins to stop.
    server_stopping: CancellationToken,
}

/// A run that has not ended.
struct Active {
    feed: Feed,
    cancel: CancellationToken,
}

/// What to train.
#[derive(Clone, Debug)]
pub(crate) struct NewRun {
    /// The model that gets the version; created if it does not exist.
    pub model: ModelId,
    /// The recipe as received.
    pub recipe: v1::Recipe,
    /// The data sources as received.
    pub sources: Vec<v1::DataSource>,
}

impl Runs {
    /// Opens the runs. Queued runs wait again; runs that were training have failed.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(super) fn open(
        store: Arc<dyn Store>,
        models: Models,
        launcher: Arc<dyn Launcher>,
        roots: Roots,
        server_stopping: CancellationToken,
        settings: RunSettings,
    ) -> Result<Self, AppError> {
        let slots = Arc::new(Semaphore::new(settings.max_concurrent));
        let runs = Self {
            shared: Arc::new(Shared {
                store,
                models,
                launcher,
                roots,
                settings,
                slots,
                active: Mutex::default(),
                starting: Mutex::default(),
                tasks: TaskTracker::new(),
                stopping: CancellationToken::new(),
                server_stopping,
            }),
        };
        runs.sweep_scratch()?;
        runs.recover()?;
        Ok(runs)
    }

    /// Removes the scratch files of a killed server. The store's lock guarantees that no other process uses the folder.
    fn sweep_scratch(&self) -> Result<(), AppError> {
        let scratch_dir = &self.shared.settings.scratch_dir;
        match std::fs::remove_dir_all(scratch_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(AppError::Internal(format!("{}: {error}", scratch_dir.display())))
            }
            _ => Ok(()),
        }
    }

    fn recover(&self) -> Result<(), AppError> {
        let is_damaged = self.shared.store.state().borrow().is_damaged(Table::Runs);
        for row in self.shared.store.readable_records::<RunRecord>(Table::Runs, Range::default()) {
            let (_, mut record) = row?;
            match record.state() {
                // An older state of a run may have come back, and the run must not train again.
                v1::RunState::Queued if is_damaged => {
                    tracing::error!(run = %record.id, "a queued run is not started, because runs were lost or altered");
                }
                v1::RunState::Queued => {
                    tracing::info!(run = %record.id, "a training run waits again after a restart");
                    let last_sequence = self.last_sequence(&record.id)?;
                    self.spawn(record, last_sequence);
                }
                v1::RunState::Running => {
                    record.set_state(v1::RunState::Failed);
                    record.end_time = Some(SystemTime::now().into());
                    record.error = Some(run_error(
                        RunErrorKind::Interrupted,
                        "the server stopped while the run was training; start it again",
                    ));
                    tracing::warn!(run = %record.id, "a training run was interrupted by the server's end");
                    let sequence = self.last_sequence(&record.id)? + 1;
                    let event = feed::event(sequence, feed::ended(&record));
                    match self.shared.store.commit(record_batch(&record, Some(&event))) {
                        // A server with a full disk still answers. The next start stores the run's end.
                        Err(error) if error.is_refusal() => {
                            tracing::error!(run = %record.id, %error, "cannot store that the run was interrupted");
                        }
                        stored => stored?,
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn last_sequence(&self, id: &str) -> Result<i64, AppError> {
        let range = Range { prefix: join_key(&[id.as_bytes(), b""]), after: None, descending: true };
        let last = self.shared.store.readable_records::<RunEventRecord>(Table::RunEvents, range).next().transpose()?;
        Ok(last.and_then(|(_, r)| r.event).map_or(0, |e| e.sequence))
    }

    /// Starts a run. If the caller leaves while the run is being stored, it still starts.
    ///
    /// # Errors
    /// When the recipe or a source is wrong, a path is outside the training roots, or too many runs wait.
    pub(crate) async fn start(&self, call: &Call, new: NewRun, once: Idempotent) -> Result<RunOperation, AppError> {
        let (runs, call) = (self.clone(), call.clone());
        detached(async move {
            let queueing = runs.clone();
            let commit = move |record, once: &Idempotent| queueing.queue(record, once);
            let id = match once.run::<_, _, v1::TrainingRun>(&runs.shared.store, runs.checked(new), commit).await? {
                Answer::New(id) => id,
                Answer::Stored(started) => started.name.trim_start_matches("trainingRuns/").to_owned(),
            };
            let id = RunId::parse(&id).ok_or_else(|| AppError::Internal(format!("{id:?} is not the id of a run")))?;
            let run = runs.get(&call, id).await?;
            Ok(runs.as_operation(run).await)
        })
        .await
    }

    /// Checks a new run, except its paths, and makes its record.
    async fn checked(&self, new: NewRun) -> Result<RunRecord, AppError> {
        let n_bytes = new.recipe.encoded_len();
        if n_bytes > MAX_RECIPE_BYTES {
            let rule = format!("must be at most {MAX_RECIPE_BYTES} bytes, not {n_bytes}: shorten the labels");
            return Err(AppError::field("recipe", rule));
        }
        let mut recipe = Recipe::from_proto(&new.recipe)?.to_proto();
        if let Some(v1::recipe::WarmStart::Version(reference)) = &recipe.warm_start {
            // An alias is resolved now, and the record names the version.
            let version = self.shared.models.resolve(Some(&ModelRef::parse("recipe.version", reference)?))?;
            let parent = self.shared.models.version(&version).await?;
            if new.recipe.architecture() == v1::Architecture::Unspecified {
                recipe.set_architecture(parent.architecture());
            } else if recipe.architecture() != parent.architecture() {
                let rule =
                    format!("{version} is a {}; use that, or leave the field out", parent.architecture().as_str_name());
                return Err(AppError::field("recipe.architecture", rule));
            }
            recipe.warm_start = Some(v1::recipe::WarmStart::Version(version.to_string()));
        }
        Ok(RunRecord {
            id: Uuid::now_v7().simple().to_string(),
            model: new.model.to_string(),
            state: v1::RunState::Queued.into(),
            create_time: Some(SystemTime::now().into()),
            recipe: Some(recipe),
            sources: new.sources,
            ..RunRecord::default()
        })
    }

    /// Stores a new run and queues it; returns its id.
    fn queue(&self, record: RunRecord, once: &Idempotent) -> Result<String, AppError> {
        self.check_paths(&record)?;
        let _turn = self.shared.starting.lock();
        let queued = self.shared.active.lock().len();
        let settings = &self.shared.settings;
        if queued >= settings.max_concurrent + settings.max_queued {
            return Err(AppError::TrainingQueueFull { n_waiting: queued - settings.max_concurrent });
        }
        let event = feed::event(1, Kind::State(v1::RunState::Queued.into()));
        let mut batch = record_batch(&record, Some(&event));
        batch.extend(once.remember(&v1::TrainingRun { name: run_name(&record.id), ..Default::default() }));
        self.shared.store.commit(batch)?;
        let id = record.id.clone();
        self.spawn(record, 1);
        Ok(id)
    }

    /// Checks that the run's paths exist below a training root. The child checks again when it opens them.
    fn check_paths(&self, record: &RunRecord) -> Result<(), AppError> {
        self.resolved_sources(record)?;
        if let Some(v1::recipe::WarmStart::WeightsPath(path)) =
            record.recipe.as_ref().and_then(|r| r.warm_start.as_ref())
        {
            self.shared.roots.resolve("recipe.weights_path", path)?;
        }
        Ok(())
    }

    fn resolved_sources(&self, record: &RunRecord) -> Result<Vec<v1::DataSource>, AppError> {
        let sources = DataSource::all_from_proto(&record.sources, &self.shared.roots)?;
        sources.iter().map(|source| Ok(source.to_proto()?)).collect()
    }

    fn spawn(&self, record: RunRecord, last_sequence: i64) {
        let active = Arc::new(Active { feed: Feed::new(last_sequence), cancel: self.shared.stopping.child_token() });
        self.shared.active.lock().insert(record.id.clone(), Arc::clone(&active));
        let runs = self.clone();
        self.shared.tasks.spawn(async move {
            let id = record.id.clone();
            task::run_to_end(&runs, &active, record).await;
            runs.shared.active.lock().remove(&id);
            // Dropping the last `Active` closes the feed for watchers, so the run is removed from `active` first.
            drop(active);
        });
    }

    /// Returns a run's current state.
    ///
    /// # Errors
    /// [`AppError::RunNotFound`].
    pub(crate) async fn get(&self, _: &Call, id: RunId) -> Result<v1::TrainingRun, AppError> {
        Ok(self.shown(&self.record(id).await?))
    }

    async fn record(&self, id: RunId) -> Result<RunRecord, AppError> {
        let store = Arc::clone(&self.shared.store);
        blocking(move || {
            store
                .get_record::<RunRecord>(Table::Runs, id.as_str().as_bytes())?
                .ok_or_else(|| AppError::RunNotFound { name: run_name(id.as_str()) })
        })
        .await
    }

    /// Converts a run for callers. Stored progress may be old; the feed has the latest step.
    fn shown(&self, record: &RunRecord) -> v1::TrainingRun {
        let mut run = run_to_proto(record);
        let active = self.shared.active.lock().get(&record.id).cloned();
        if let Some(progress) = active.and_then(|a| a.feed.latest_progress()) {
            run.progress = Some(progress);
        }
        run
    }

    /// Returns a page of the runs, newest first, optionally of one model.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn list(
        &self,
        _: &Call,
        page: Page,
        model: Option<ModelId>,
    ) -> Result<Paged<v1::TrainingRun>, AppError> {
        let is_of_model =
            move |record: &RunRecord| model.as_ref().is_none_or(|model| model.as_bytes() == record.model.as_bytes());
        self.page(page, is_of_model).await
    }

    /// Returns a page of the runs for which `wanted` is true, newest first.
    async fn page(
        &self,
        page: Page,
        wanted: impl Fn(&RunRecord) -> bool + Send + 'static,
    ) -> Result<Paged<v1::TrainingRun>, AppError> {
        let store = Arc::clone(&self.shared.store);
        let paged = blocking(move || {
            let range = Range { after: page.after.clone(), descending: true, ..Range::default() };
            let rows = store.readable_records::<RunRecord>(Table::Runs, range).map(|row| row.map(|(_, record)| record));
            let found = rows.filter(|row| row.as_ref().map_or(true, &wanted)).take(page.limit());
            let found = found.collect::<Result<Vec<_>, _>>()?;
            Ok(page.finish(found, |record| record.id.clone().into_bytes()))
        })
        .await?;
        Ok(paged.map(|record| self.shown(&record)))
    }

    /// Returns the events of a run after event `after`, until it ends.
    ///
    /// # Errors
    /// [`AppError::RunNotFound`].
    pub(crate) async fn watch(&self, _: &Call, id: RunId, after: i64) -> Result<BoxStream<'static, Event>, AppError> {
        Ok(self.watched(id, after).await?.events())
    }

    async fn watched(&self, id: RunId, after: i64) -> Result<Watch, AppError> {
        // Subscribed before the stored events are read: events in between appear in both, and are returned once.
        let live = self.shared.active.lock().get(id.as_str()).map(|active| active.feed.subscribe());
        let record = self.record(id.clone()).await?;
        let store = Arc::clone(&self.shared.store);
        let mut kept = blocking(move || {
            let prefix = join_key(&[id.as_str().as_bytes(), b""]);
            let range = Range { after: Some(event_key(id.as_str(), after.max(0))), prefix, descending: false };
            let rows = store.readable_records::<RunEventRecord>(Table::RunEvents, range);
            Ok(rows.filter_map(|row| row.map(|(_, r)| r.event).transpose()).collect::<Result<Vec<Event>, _>>()?)
        })
        .await?;
        let has_ended = !matches!(record.state(), v1::RunState::Queued | v1::RunState::Running);
        if has_ended && kept.is_empty() {
            // Not every event is stored, so before a crash a watcher may have seen numbers above that of the stored
            // end.
            kept.push(feed::event(after.max(0).saturating_add(1), feed::ended(&record)));
        }
        Ok(Watch::new(kept, live, after))
    }

    /// Cancels every run and waits until each has stored its end.
    pub(super) async fn stop(&self) {
        self.shared.tasks.close();
        self.shared.stopping.cancel();
        self.shared.tasks.wait().await;
    }
}

/// Why a run made no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunErrorKind {
    /// Bad data, recipe or weights; includes a NaN loss. The caller must act.
    Invalid,
    /// Out of memory.
    Memory,
    /// The caller cancelled the run.
    Cancelled,
    /// The server stopped.
    Interrupted,
    /// The process crashed or violated the protocol.
    Internal,
}

/// Makes the error of a run's end, as it is stored and returned.
fn run_error(kind: RunErrorKind, message: &str) -> rpc::Status {
    // The codes of google.rpc.Code.
    let code = match kind {
        RunErrorKind::Cancelled => 1,
        RunErrorKind::Invalid => 3,
        RunErrorKind::Memory => 8,
        RunErrorKind::Internal => 13,
        RunErrorKind::Interrupted => 14,
    };
    let reason = match kind {
        RunErrorKind::Invalid => v1::ErrorReason::FieldInvalid,
        RunErrorKind::Memory => v1::ErrorReason::DeviceMemory,
        RunErrorKind::Cancelled => v1::ErrorReason::Cancelled,
        RunErrorKind::Interrupted => v1::ErrorReason::Unavailable,
        RunErrorKind::Internal => v1::ErrorReason::Internal,
    };
    let info = rpc::ErrorInfo {
        reason: reason_name(reason).to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        ..rpc::ErrorInfo::default()
    };
    let info = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
        value: info.encode_to_vec(),
    };
    rpc::Status { code, message: message.chars().take(MAX_END_CHARS).collect(), details: vec![info] }
}

fn run_to_proto(record: &RunRecord) -> v1::TrainingRun {
    let version = ModelId::parse("model", &record.model)
        .ok()
        .filter(|_| record.version > 0)
        .map(|model| VersionName { model, number: record.version }.to_string());
    v1::TrainingRun {
        name: run_name(&record.id),
        model: format!("models/{}", record.model),
        state: record.state,
        create_time: record.create_time,
        end_time: record.end_time,
        recipe: record.recipe.clone(),
        sources: record.sources.clone(),
        data: record.data.clone(),
        progress: record.progress.clone(),
        version: version.unwrap_or_default(),
        error: record.error.clone(),
        metrics: record.metrics.clone(),
    }
}

fn run_name(id: &str) -> String {
    format!("trainingRuns/{id}")
}

fn event_key(id: &str, sequence: i64) -> Vec<u8> {
    join_key(&[id.as_bytes(), &sequence.to_be_bytes()])
}

/// Returns the writes of a run's record and, if given, its event.
fn record_batch(record: &RunRecord, event: Option<&Event>) -> Batch {
    let mut batch = Batch::default();
    batch.put_record(Table::Runs, record.id.as_bytes(), record);
    if let Some(event) = event {
        let key = event_key(&record.id, event.sequence);
        batch.put_record(Table::RunEvents, &key, &RunEventRecord { event: Some(event.clone()) });
    }
    batch
}
