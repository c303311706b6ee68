//! The device's second thread: builds, checks and warms engines, and drops them, while the first goes on serving.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    EngineError, EngineLoader, EngineSource, ServeError,
    device::Device,
    exchange::{Errand, LoadedEngine, Probe, Warmed},
    golden,
};
use crate::nn::{BUCKETS, TensorData};

/// The thread's body; ends when the device is stopped.
pub(super) fn run(device: &Device, loader: &dyn EngineLoader) {
    yield_to_serving();
    loader.enter_thread(device.settings.n_threads);
    loop {
        match device.next_errand() {
            Errand::Load(source) => {
                let version = source.version.clone();
                let start = Instant::now();
                let prepared = catch_unwind(AssertUnwindSafe(|| prepare(device, loader, *source)));
                let result = prepared
                    .unwrap_or_else(|panic| Err(golden::engine_error(&version, EngineError::of_panic(&*panic))));
                match &result {
                    Ok(_) => info!(version, took = ?start.elapsed(), "loaded"),
                    Err(ServeError::Stopping) => info!(version, "is not loaded any more, for the server stops"),
                    Err(error) => warn!(version, %error, "could not be loaded"),
                }
                device.loaded(&version, result);
            }
            Errand::Probe(probe) => {
                let Probe { source, seed, reply } = *probe;
                let version = source.version.clone();
                let asked = catch_unwind(AssertUnwindSafe(|| ask(loader, &source, seed)));
                let outputs =
                    asked.unwrap_or_else(|panic| Err(golden::engine_error(&version, EngineError::of_panic(&*panic))));
                // A caller that has gone away needs no answer.
                drop(reply.send(outputs));
            }
            Errand::Drop(engines) => {
                // A destructor that panics must not take the thread along.
                drop(catch_unwind(AssertUnwindSafe(|| drop(engines))));
            }
            Errand::Stop => return,
        }
    }
}

/// What an engine that is built for this alone says about a test pattern.
fn ask(loader: &dyn EngineLoader, source: &EngineSource, seed: u64) -> Result<Vec<f32>, ServeError> {
    let version = &source.version;
    let mut engine = loader.load(source).map_err(|error| golden::engine_error(version, error))?;
    golden::outputs(version, &mut *engine, &Arc::new(golden::golden_input(&source.record, seed)))
}

fn prepare(device: &Device, loader: &dyn EngineLoader, source: EngineSource) -> Result<Warmed, ServeError> {
    let version = source.version.clone();
    let mut engine = loader.load(&source).map_err(|error| golden::engine_error(&version, error))?;
    if !source.tensors.iter().all(TensorData::is_intact) {
        let detail = "a cache file of its weights was cut while it was read".to_owned();
        return Err(ServeError::EngineFailed { version, detail });
    }
    let golden = source.record.golden.clone();
    let probe = Arc::new(golden::golden_input(&source.record, golden.as_ref().map_or(0, |g| g.input_seed)));
    // The tensors are on the device now; their bytes need not be held while it is warmed.
    drop(source);
    match &golden {
        Some(golden) => golden::check(&version, &mut *engine, &probe, golden)?,
        None => warn!(version, "has no golden outputs to be compared with"),
    }
    let mut took: Vec<(usize, Duration)> = Vec::new();
    let max_batch = device.settings.max_batch.min(engine.max_batch());
    for bucket in BUCKETS.into_iter().filter(|&b| b == 1 || b <= max_batch) {
        let batch = vec![probe.clone(); bucket];
        // The first run of a shape makes its plans, so small batches, where that shows, are timed in the second.
        let n_runs = if bucket <= 4 { 2 } else { 1 };
        let mut fastest = Duration::MAX;
        for _ in 0..n_runs {
            // Whoever stops the server does not wait until an engine is warm that nobody will ask.
            if !device.is_taking() {
                return Err(ServeError::Stopping);
            }
            let start = Instant::now();
            // A panic for want of memory limits the batch; any other fails the load.
            let ran = catch_unwind(AssertUnwindSafe(|| engine.run(&batch)));
            match ran.unwrap_or_else(|panic| Err(EngineError::of_panic(&*panic))) {
                Ok(outputs) if outputs.len() == bucket => fastest = fastest.min(start.elapsed()),
                Ok(outputs) => {
                    let detail = format!("{} answers for {bucket} images", outputs.len());
                    return Err(ServeError::EngineFailed { version, detail });
                }
                Err(EngineError::OutOfMemory(detail)) if bucket > 1 => {
                    warn!(version, bucket, detail, "the device's memory limits the batch");
                    return Ok(Warmed { engine: LoadedEngine { engine, probe, n_failed: 0 }, took });
                }
                Err(error) => return Err(golden::engine_error(&version, error)),
            }
        }
        took.push((bucket, fastest));
    }
    Ok(Warmed { engine: LoadedEngine { engine, probe, n_failed: 0 }, took })
}

/// Lowers this thread's share of the cores, and with it that of the kernel threads it will start, so that warming a new
/// version takes what serving leaves.
fn yield_to_serving() {
    #[cfg(target_os = "linux")]
    {
        const NICENESS: libc::c_int = 10;
        // SAFETY: takes no pointers. On Linux, `PRIO_PROCESS` with 0 means the calling thread alone.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
        if result != 0 {
            warn!(error = %std::io::Error::last_os_error(), "loading versions will compete with serving");
        }
    }
}
