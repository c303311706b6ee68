//! The device's second thread, which builds, checks, warms and drops engines while the first serves.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    EngineError, EngineLoader, EngineSource, ServeError,
    device::Device,
    exchange::{LoadedEngine, LoaderTask, Probe, Warmed},
    golden,
};
use crate::{
    nn::{BUCKETS, TensorData},
    threads::yield_to_calls,
};

/// Runs the thread until the device is stopped.
pub(super) fn run(device: &Device, loader: &dyn EngineLoader) {
    yield_to_calls("loading versions");
    loader.enter_thread(device.settings.n_threads);
    loop {
        match device.next_loader_task() {
            LoaderTask::Load(source) => {
                let version = source.version.clone();
                let start = Instant::now();
                let prepared = catch_unwind(AssertUnwindSafe(|| prepare(device, loader, *source)));
                let result = prepared
                    .unwrap_or_else(|panic| Err(golden::engine_error(&version, EngineError::of_panic(&*panic))));
                match &result {
                    Ok(_) => info!(%version, took = ?start.elapsed(), "loaded"),
                    Err(ServeError::Stopping) => info!(%version, "not loaded: the server is stopping"),
                    Err(error) => warn!(%version, %error, "could not be loaded"),
                }
                device.loaded(&version, result);
            }
            LoaderTask::Probe(probe) => {
                let Probe { source, seed, reply } = *probe;
                let version = source.version.clone();
                let probed = catch_unwind(AssertUnwindSafe(|| run_probe(loader, &source, seed)));
                let outputs =
                    probed.unwrap_or_else(|panic| Err(golden::engine_error(&version, EngineError::of_panic(&*panic))));
                // A caller that has left needs no reply.
                drop(reply.send(outputs));
            }
            LoaderTask::Drop(engines) => {
                // A panicking destructor must not end the thread.
                drop(catch_unwind(AssertUnwindSafe(|| drop(engines))));
            }
            LoaderTask::Stop => return,
        }
    }
}

/// Builds an engine only to run a test pattern on it, and returns its outputs.
fn run_probe(loader: &dyn EngineLoader, source: &EngineSource, seed: u64) -> Result<Vec<f32>, ServeError> {
    let version = &source.version;
    let mut engine = loader.load(source).map_err(|error| golden::engine_error(version, error))?;
    golden::outputs(version, &mut *engine, &Arc::new(golden::input(&source.input, seed)))
}

fn prepare(device: &Device, loader: &dyn EngineLoader, source: EngineSource) -> Result<Warmed, ServeError> {
    let version = source.version.clone();
    let mut engine = loader.load(&source).map_err(|error| golden::engine_error(&version, error))?;
    if !source.tensors.iter().all(TensorData::is_intact) {
        let detail = "a cache file of its weights was cut while it was read".to_owned();
        return Err(ServeError::EngineFailed { stage: version.into(), detail });
    }
    let golden = source.golden.clone();
    let probe = Arc::new(golden::input(&source.input, golden.as_ref().map_or(0, |g| g.input_seed)));
    // The tensors are on the device now; free their bytes before warming.
    drop(source);
    match &golden {
        Some(golden) => golden::check(&version, &mut *engine, &probe, golden)?,
        None => warn!(%version, "has no golden outputs to be compared with"),
    }
    let mut took: Vec<(usize, Duration)> = Vec::new();
    let max_batch = device.settings.max_batch.min(engine.max_batch());
    for bucket in BUCKETS.into_iter().filter(|&b| b == 1 || b <= max_batch) {
        let batch = vec![probe.clone(); bucket];
        // The first run of a shape also plans its kernels. Small batches, where that shows, are timed in the second
        // run.
        let n_runs = if bucket <= 4 { 2 } else { 1 };
        let mut fastest = Duration::MAX;
        for _ in 0..n_runs {
            // A stopping server does not wait for an engine to warm.
            if !device.is_accepting() {
                return Err(ServeError::Stopping);
            }
            let start = Instant::now();
            // A panic for lack of memory limits the batch; any other fails the load.
            let ran = catch_unwind(AssertUnwindSafe(|| engine.run(&batch)));
            match ran.unwrap_or_else(|panic| Err(EngineError::of_panic(&*panic))) {
                Ok(outputs) if outputs.len() == bucket => fastest = fastest.min(start.elapsed()),
                Ok(outputs) => {
                    let detail = format!("{} answers for {bucket} images", outputs.len());
                    return Err(ServeError::EngineFailed { stage: version.into(), detail });
                }
                Err(EngineError::OutOfMemory(detail)) if bucket > 1 => {
                    warn!(%version, bucket, detail, "the device's memory limits the batch");
                    return Ok(Warmed { engine: LoadedEngine { engine, probe, n_failed: 0 }, took });
                }
                Err(error) => return Err(golden::engine_error(&version, error)),
            }
        }
        took.push((bucket, fastest));
    }
    Ok(Warmed { engine: LoadedEngine { engine, probe, n_failed: 0 }, took })
}
