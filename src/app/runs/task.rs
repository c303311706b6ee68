//! Runs one training run: waits for a slot, starts the child, records its events, registers the version.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use super::{Active, RunErrorKind, Runs, blocking, feed, record_batch, run_error, run_name};
use crate::{
    app::AppError,
    digest::Digest,
    names::{ModelId, VersionName},
    nn::{Golden, TensorData, parse_weights, write_safetensors},
    proto::{
        rpc,
        store::RunRecord,
        v1::{self, watch_training_run_response::Event as Kind},
        worker::{Failed, FailureKind, Finished, Job, worker_event::Event as WorkerReport},
    },
    registry::{NewVersion, Origin, Reads},
    training::RunningWorker,
};

/// Progress is stored at the end of each epoch and at least this often.
const KEEP_PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Runs a training run to its end, and always stores the end.
pub(super) async fn run_to_end(runs: &Runs, active: &Active, mut record: RunRecord) {
    let end = match train(runs, active, &mut record).await {
        Ok(End::Registered | End::StillQueued) => return,
        Ok(End::Failed(error)) => error,
        Err(error) => {
            let kind = match error.kind() {
                crate::error::Kind::Invalid | crate::error::Kind::NotFound | crate::error::Kind::Conflict => {
                    RunErrorKind::Invalid
                }
                crate::error::Kind::Overloaded => RunErrorKind::Memory,
                crate::error::Kind::Cancelled => RunErrorKind::Cancelled,
                crate::error::Kind::Corrupt | crate::error::Kind::Internal => RunErrorKind::Internal,
            };
            run_error(kind, &error.to_string())
        }
    };
    let cancelled = end.code == run_error(RunErrorKind::Cancelled, "").code;
    tracing::warn!(run = %record.id, reason = %end.message, cancelled, "the training run made no version");
    record.set_state(if cancelled { v1::RunState::Cancelled } else { v1::RunState::Failed });
    record.end_time = Some(SystemTime::now().into());
    record.error = Some(end);
    if let Err(error) = write(runs, active, &record, feed::ended(&record)).await {
        tracing::error!(run = %record.id, %error, "cannot write the end of a training run; it is written at the next start");
    }
}

/// The result of a run's task.
enum End {
    /// The version and the run's end are stored and published.
    Registered,
    /// The server stopped before the run began; it waits again after the next start.
    StillQueued,
    /// There is no version; the end is still to be stored.
    Failed(rpc::Status),
}

async fn train(runs: &Runs, active: &Active, record: &mut RunRecord) -> Result<End, AppError> {
    let slots = std::sync::Arc::clone(&runs.shared.slots);
    let _slot = tokio::select! {
        biased;
        () = active.cancel.cancelled() => {
            return Ok(if runs.shared.stopping.is_cancelled() { End::StillQueued } else { stopped(runs) });
        }
        slot = slots.acquire_owned() => slot.map_err(|_| AppError::Stopping)?,
    };
    record.set_state(v1::RunState::Running);
    write(runs, active, record, Kind::State(v1::RunState::Running.into())).await?;

    let scratch_root = runs.shared.settings.scratch_dir.clone();
    let scratch = blocking(move || {
        std::fs::create_dir_all(&scratch_root)
            .and_then(|()| tempfile::Builder::new().prefix("run-").tempdir_in(&scratch_root))
            .map_err(|e| AppError::Internal(format!("{}: {e}", scratch_root.display())))
    })
    .await?;
    let job = prepare(runs, record, scratch.path()).await?;
    let launcher = std::sync::Arc::clone(&runs.shared.launcher);
    let mut worker = blocking(move || Ok(launcher.start(job)?)).await?;
    follow(runs, active, record, &mut worker).await?;
    let exit = worker.wait().await;
    if active.cancel.is_cancelled() {
        return Ok(stopped(runs));
    }
    match exit.result {
        Ok(finished) => register(runs, active, record, *finished, scratch.path()).await,
        Err(failed) => {
            tracing::info!(run = %record.id, stderr = %exit.stderr_tail, "the training process ended without a version");
            Ok(End::Failed(failure(&failed)))
        }
    }
}

/// Prepares the child's job. The child does not read the store, so weights from the store are written to its scratch
/// folder.
async fn prepare(runs: &Runs, record: &RunRecord, scratch: &Path) -> Result<Job, AppError> {
    let settings = &runs.shared.settings;
    let mut job = Job {
        run_id: record.id.clone(),
        recipe: record.recipe.clone(),
        sources: runs.resolved_sources(record)?,
        scratch_dir: scratch.to_string_lossy().into_owned(),
        device: settings.device.clone(),
        n_threads: settings.n_threads,
        max_pixels: settings.max_pixels,
        roots: runs.shared.roots.paths().iter().map(|p| p.to_string_lossy().into_owned()).collect(),
        ..Job::default()
    };
    match record.recipe.as_ref().and_then(|r| r.warm_start.as_ref()) {
        Some(v1::recipe::WarmStart::Version(name)) => {
            let version = runs.shared.models.version(&VersionName::parse("recipe.version", name)?).await?;
            let registry = std::sync::Arc::clone(runs.shared.models.registry());
            let file = scratch.join("warm_start.safetensors");
            job.warm_start_file = file.to_string_lossy().into_owned();
            blocking(move || {
                loop {
                    let tensors = registry.load_tensors(&version)?;
                    write_safetensors(&file, &tensors)?;
                    // If a cache file was truncated while being read, the next read restores it from the store.
                    if tensors.iter().all(TensorData::is_intact) {
                        return Ok(());
                    }
                }
            })
            .await?;
        }
        Some(v1::recipe::WarmStart::WeightsPath(path)) => {
            let file = runs.shared.roots.resolve("recipe.weights_path", path)?;
            job.torchvision_file = file.to_string_lossy().into_owned();
        }
        None => {}
    }
    Ok(job)
}

/// Records the child's events until the last one, or until the run is cancelled.
async fn follow(
    runs: &Runs,
    active: &Active,
    record: &mut RunRecord,
    worker: &mut RunningWorker,
) -> Result<(), AppError> {
    let mut kept = ((0, 0), Instant::now());
    loop {
        let event = tokio::select! {
            biased;
            () = active.cancel.cancelled() => {
                worker.cancel();
                return Ok(());
            }
            event = worker.events.recv() => event,
        };
        match event.map(|event| event.event) {
            Some(Some(WorkerReport::Data(data))) => {
                record.data = Some(data.clone());
                write(runs, active, record, Kind::Data(data)).await?;
            }
            Some(Some(WorkerReport::Progress(progress))) => {
                let epoch = (progress.stage, progress.epoch);
                record.progress = Some(progress.clone());
                let ends_epoch = progress.epoch > 0 && progress.step == progress.n_steps;
                if ends_epoch || epoch != kept.0 || kept.1.elapsed() > KEEP_PROGRESS_EVERY {
                    kept = (epoch, Instant::now());
                    write(runs, active, record, Kind::Progress(progress)).await?;
                } else {
                    active.feed.publish(feed::event(active.feed.next_sequence(), Kind::Progress(progress)));
                }
            }
            // The exit carries this result, too.
            Some(Some(WorkerReport::Finished(_) | WorkerReport::Failed(_)) | None) => {}
            None => return Ok(()),
        }
    }
}

/// Returns the end of a run that its caller or the stopping server cancelled.
fn stopped(runs: &Runs) -> End {
    End::Failed(if runs.shared.stopping.is_cancelled() {
        run_error(RunErrorKind::Interrupted, "the server stopped while the run was training; start it again")
    } else {
        run_error(RunErrorKind::Cancelled, "the run was cancelled")
    })
}

fn failure(failed: &Failed) -> rpc::Status {
    let kind = match failed.kind() {
        FailureKind::BadData | FailureKind::BadRecipe | FailureKind::Diverged => RunErrorKind::Invalid,
        FailureKind::OutOfMemory => RunErrorKind::Memory,
        FailureKind::Cancelled => RunErrorKind::Cancelled,
        FailureKind::Unspecified | FailureKind::Internal => RunErrorKind::Internal,
    };
    run_error(kind, &failed.message)
}

/// Registers the version and stores the run's end in the same commit.
async fn register(
    runs: &Runs,
    active: &Active,
    record: &mut RunRecord,
    finished: Finished,
    scratch: &Path,
) -> Result<End, AppError> {
    let tensors = read_weights(&finished, scratch).await?;
    record.metrics = finished.metrics.clone();
    let model = ModelId::parse("model", &record.model)?;
    let recipe = record.recipe.clone().unwrap_or_default();
    let architecture = recipe.architecture();
    let parent_version = match &recipe.warm_start {
        Some(v1::recipe::WarmStart::Version(name)) => Some(VersionName::parse("recipe.version", name)?),
        _ => None,
    };
    let reads = Reads::parse(finished.preprocessing.as_ref())
        .map_err(|detail| AppError::Internal(format!("the training process made an invalid version: {detail}")))?;
    let origin = Origin {
        training_run: run_name(&record.id),
        recipe: Some(recipe),
        data_fingerprint: record.data.as_ref().map(|d| d.fingerprint.clone()).unwrap_or_default(),
        parent_version,
        ..Origin::default()
    };
    let new = NewVersion {
        heads: finished.heads,
        calibrations: finished.calibrations,
        embedding_layers: crate::app::embedding_layers(),
        metrics: finished.metrics,
        golden: finished.golden.map(Golden::from),
        ..NewVersion::new(model, architecture, reads, tensors, origin)
    };
    let mut ended = record.clone();
    ended.set_state(v1::RunState::Succeeded);
    ended.end_time = Some(SystemTime::now().into());
    let sequence = active.feed.next_sequence();
    let registry = std::sync::Arc::clone(runs.shared.models.registry());
    let (version, event) = blocking(move || {
        let mut event = None;
        let version = registry.register(new, |version| {
            ended.version = version.name.number;
            let end = feed::event(sequence, feed::ended(&ended));
            let batch = record_batch(&ended, Some(&end));
            event = Some(end);
            batch
        })?;
        Ok((version.name, event))
    })
    .await?;
    if let Err(error) = runs.shared.models.refresh().await {
        // The version is stored and the run has ended; the next change of an alias reads the aliases again.
        tracing::error!(%version, %error, "cannot read the aliases again");
    }
    if !runs.shared.models.aliases_of(&version).is_empty() {
        // A model's first version becomes its champion at once. If the load fails, callers get its error.
        if let Err(error) = runs.shared.models.ensure_loaded(&version).await {
            tracing::error!(%version, %error, "the new version cannot be loaded");
        }
    }
    tracing::info!(run = %record.id, %version, "the training run made a version");
    if let Some(event) = event {
        active.feed.publish(event);
    }
    Ok(End::Registered)
}

/// Reads the child's weights, after checking that the file is in its folder and has the announced digest.
async fn read_weights(finished: &Finished, scratch: &Path) -> Result<Vec<TensorData>, AppError> {
    let file = Path::new(&finished.weights_file).to_owned();
    let (digest, scratch) = (finished.weights_digest.clone(), scratch.to_owned());
    blocking(move || {
        if !file.starts_with(&scratch) {
            return Err(AppError::Internal("the training process wrote its weights elsewhere".to_owned()));
        }
        // Read only once, so that the registered bytes are those of the digest.
        let bytes = std::fs::read(&file).map_err(|e| AppError::Internal(format!("{}: {e}", file.display())))?;
        if Digest::of(&bytes).as_bytes().as_slice() != digest {
            return Err(AppError::Internal("the training process's weights differ from what it announced".to_owned()));
        }
        Ok(parse_weights(&file, &bytes.into())?)
    })
    .await
}

/// Stores an event, then publishes it, so that no published event is lost in a crash.
async fn write(runs: &Runs, active: &Active, record: &RunRecord, kind: Kind) -> Result<(), AppError> {
    let event = feed::event(active.feed.next_sequence(), kind);
    let store = std::sync::Arc::clone(&runs.shared.store);
    let batch = record_batch(record, Some(&event));
    blocking(move || Ok(store.commit(batch)?)).await?;
    active.feed.publish(event);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::nn::Dtype;

    fn tensors(fill: u8) -> Vec<TensorData> {
        vec![TensorData { name: "w".to_owned(), shape: vec![1], dtype: Dtype::F32, bytes: vec![fill; 4].into() }]
    }

    /// Uses a pipe, whose content can be read only once.
    #[tokio::test]
    async fn weights_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let digest = write_safetensors(&file, &tensors(1)).unwrap();
        let pipe = dir.path().join("weights.safetensors");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let writer = thread::spawn({
            let (content, pipe) = (fs::read(&file).unwrap(), pipe.clone());
            move || fs::write(pipe, content)
        });
        let finished = Finished {
            weights_file: pipe.to_string_lossy().into_owned(),
            weights_digest: digest.as_bytes().to_vec(),
            ..Finished::default()
        };
        let weights = timeout(Duration::from_secs(30), read_weights(&finished, dir.path())).await;
        if weights.is_err() {
            // Ends the second reading, which would otherwise wait for ever.
            fs::write(&pipe, b"").unwrap();
        }
        assert_eq!(weights.expect("the file is read once").unwrap(), tensors(1));
        writer.join().unwrap().unwrap();
    }
}
