//! The device's thread, which runs batches and confines a failure to the image that causes it.
//!
//! A failed batch is halved until the bad image is alone, so that its neighbours are answered. When images keep failing
//! alone, the engine runs one that it has answered before. If that succeeds, the images were bad and serving continues;
//! if not, the engine is bad and its version is failed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use tracing::{error, warn};

use super::{
    EngineError, EngineLoader, ImageOutput, Input, ServeError, Served,
    device::Device,
    exchange::{ExecutorTask, LoadedEngine, QueuedImage, Reply, Report},
    panic_message,
    scheduler::{Batch, Waiting},
};
use crate::names::VersionName;

/// Single images that may fail in a row before the engine itself is tested.
const MAX_FAILED_IN_A_ROW: u32 = 3;

/// Runs the thread until the device is stopped.
pub(super) fn run(device: &Device, loader: &dyn EngineLoader) {
    loader.enter_thread(device.settings.n_threads);
    let mut replies = Vec::new();
    loop {
        match catch_unwind(AssertUnwindSafe(|| serve(device, &mut replies))) {
            Ok(()) => return,
            Err(panic) => {
                let detail = panic_message(&*panic);
                error!(%detail, "the executor failed and continues");
                device.recover(&detail, &mut replies);
                replies.drain(..).for_each(Reply::send);
            }
        }
    }
}

fn serve(device: &Device, replies: &mut Vec<Reply>) {
    loop {
        let task = device.next_executor_task(replies);
        replies.drain(..).for_each(Reply::send);
        match task {
            ExecutorTask::Run(batch, mut engine) => {
                let Batch { version, entries } = batch;
                let report = Run { version: &version, engine: &mut engine, report: Report::default() }.all(entries);
                device.return_engine(&version, engine, report, replies);
                replies.drain(..).for_each(Reply::send);
            }
            ExecutorTask::Reply => {}
            ExecutorTask::Stop => return,
        }
    }
}

struct Run<'a> {
    version: &'a VersionName,
    engine: &'a mut LoadedEngine,
    report: Report,
}

impl Run<'_> {
    fn all(mut self, entries: Vec<Waiting<QueuedImage>>) -> Report {
        self.run_entries(entries);
        self.report
    }

    /// Answers the entries, together if possible, else in halves.
    fn run_entries(&mut self, mut entries: Vec<Waiting<QueuedImage>>) {
        if let Some(error) = &self.report.broken {
            entries.into_iter().for_each(|entry| answer(entry, Err(error.clone())));
            return;
        }
        let start = Instant::now();
        // Halving takes time, in which callers leave and deadlines pass.
        let version = self.version;
        for late in entries.extract_if(.., |entry| entry.deadline.is_some_and(|due| due <= start)) {
            answer(late, Err(ServeError::DeadlineExceeded { stage: version.clone().into() }));
        }
        entries.retain(|entry| !entry.payload.reply.is_closed());
        if entries.is_empty() {
            return;
        }
        let images: Vec<_> = entries.iter().map(|entry| entry.payload.image.clone()).collect();
        let n_images = images.len();
        match (attempt(self.engine, &images), n_images) {
            (Ok(outputs), batch_size) => {
                let inference = start.elapsed();
                self.engine.n_failed = 0;
                self.report.took.push((batch_size, inference));
                for (entry, output) in entries.into_iter().zip(outputs) {
                    let queue = start.saturating_duration_since(entry.since);
                    answer(entry, Ok(Served { output, queue, inference, batch_size }));
                }
            }
            (Err(EngineError::OutOfMemory(detail)), 1) => {
                let error = ServeError::DeviceMemory { version: version.clone(), detail };
                entries.into_iter().for_each(|entry| answer(entry, Err(error.clone())));
            }
            (Err(cause), 1) => {
                let detail = cause.to_string();
                warn!(%version, detail, "an image failed alone");
                let error = ServeError::EngineFailed { stage: version.clone().into(), detail };
                entries.into_iter().for_each(|entry| answer(entry, Err(error.clone())));
                self.check_engine();
            }
            (Err(cause), _) => {
                warn!(%version, %cause, n_images, "a batch failed and is retried in halves");
                let half = entries.split_off(n_images / 2);
                if matches!(cause, EngineError::OutOfMemory(_)) {
                    let max_batch = self.report.max_batch.map_or(n_images / 2, |max| max.min(n_images / 2));
                    self.report.max_batch = Some(max_batch);
                }
                self.run_entries(entries);
                self.run_entries(half);
            }
        }
    }

    /// Tests the engine after repeated failures of single images.
    fn check_engine(&mut self) {
        self.engine.n_failed += 1;
        if self.engine.n_failed < MAX_FAILED_IN_A_ROW {
            return;
        }
        let probe = [self.engine.probe.clone()];
        match attempt(self.engine, &probe) {
            Ok(_) => self.engine.n_failed = 0,
            Err(cause) => {
                let detail = format!("it fails the image it was warmed with: {cause}");
                error!(version = %self.version, detail, "the version is marked as failed; load it again");
                self.report.broken = Some(ServeError::EngineFailed { stage: self.version.clone().into(), detail });
            }
        }
    }
}

/// Runs the engine. A panic or too few answers is an error.
fn attempt(engine: &mut LoadedEngine, images: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
    // If a panic leaves the engine inconsistent, the following images fail; see `check_engine`.
    let outputs = catch_unwind(AssertUnwindSafe(|| engine.engine.run(images)))
        .map_err(|panic| EngineError::of_panic(&*panic))??;
    if outputs.len() != images.len() {
        return Err(EngineError::Failed(format!("{} answers for {} images", outputs.len(), images.len())));
    }
    Ok(outputs)
}

/// Replies to the caller; one that has left needs no reply.
fn answer(entry: Waiting<QueuedImage>, result: Result<Served, ServeError>) {
    drop(entry.payload.reply.send(result));
}
