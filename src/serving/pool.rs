//! The handle of a device: load, run, unload, drain.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    EngineLoader, EngineSource, Input, LoadState, Priority, ServeError, Served, ServingSettings, device::Device,
    exchange::Change, executor, loader, scheduler::Ticket,
};
use crate::names::VersionName;

/// The versions on one device, and the two threads that own them.
///
/// A cheap handle: clones share the pool. Dropping the last one stops the pool, and queued images are answered with
/// [`ServeError::Stopping`]. Its futures need no particular runtime.
#[derive(Clone)]
pub(crate) struct ServingPool {
    inner: Arc<Inner>,
}

struct Inner {
    device: Arc<Device>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ServingPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`ServeError::NoThread`] when a thread cannot be started.
    pub(crate) fn start(settings: ServingSettings, loader: Arc<dyn EngineLoader>) -> Result<Self, ServeError> {
        let device = Arc::new(Device::new(settings));
        let inner = Arc::new(Inner { device: device.clone(), threads: Mutex::default() });
        for (name, body) in [("exec", executor::run as fn(&Device, &dyn EngineLoader)), ("load", loader::run)] {
            let (device, loader) = (device.clone(), loader.clone());
            let thread = thread::Builder::new().name(format!("{name}-{}", device.settings.device));
            let spawned = thread.spawn({
                let device = device.clone();
                move || {
                    let _end = ThreadEnd(&device);
                    body(&device, &*loader);
                }
            });
            // If the second thread fails to start, `Inner`'s drop ends the first.
            inner.keep(spawned.map_err(|e| ServeError::NoThread {
                name: format!("{name}-{}", device.settings.device),
                detail: e.to_string(),
            })?);
        }
        Ok(Self { inner })
    }

    /// Loads a version: builds its engine, compares it with the version's golden outputs, warms every batch size, and
    /// starts serving it. Other versions are served meanwhile. A loaded version is left as it is; a load in progress is
    /// awaited. Dropping the future does not stop the load.
    ///
    /// # Errors
    /// [`ServeError::GoldenMismatch`], [`ServeError::DeviceMemory`] (also when over the budget),
    /// [`ServeError::EngineFailed`], [`ServeError::Overloaded`] when too many loads wait, [`ServeError::Stopping`].
    pub(crate) async fn load(&self, mut source: EngineSource) -> Result<(), ServeError> {
        loop {
            match self.inner.device.load(source)? {
                None => return Ok(()),
                Some(Change::Loaded(end) | Change::Unloaded(end)) => {
                    return end.await.unwrap_or(Err(ServeError::Stopping));
                }
                Some(Change::Gone(end, again)) => {
                    end.await.unwrap_or(Err(ServeError::Stopping))?;
                    source = *again;
                }
            }
        }
    }

    /// Unloads a version: refuses new images, answers the queued ones, then releases its memory. Does nothing for an
    /// absent version; waits first for a load in progress. Dropping the future does not stop the unload.
    pub(crate) async fn unload(&self, version: &VersionName) {
        while let Some(change) = self.inner.device.unload(version) {
            match change {
                // The outcome of the load does not matter: the next round checks the state again.
                Change::Loaded(end) => drop(end.await),
                // Unloaded, or the pool has stopped.
                Change::Unloaded(end) | Change::Gone(end, _) => return drop(end.await),
            }
        }
    }

    /// Builds a version's engine, runs the test pattern of this seed, and drops it: the outputs become the golden
    /// outputs of a version that is not registered yet. Serving continues meanwhile.
    ///
    /// # Errors
    /// [`ServeError::EngineFailed`], [`ServeError::DeviceMemory`], [`ServeError::Overloaded`] when too many loads wait,
    /// [`ServeError::Stopping`].
    pub(crate) async fn probe(&self, source: EngineSource, seed: u64) -> Result<Vec<f32>, ServeError> {
        let answer = self.inner.device.probe(source, seed)?;
        answer.await.unwrap_or(Err(ServeError::Stopping))
    }

    /// The version's state on this device.
    #[must_use]
    pub(crate) fn state(&self, version: &VersionName) -> LoadState {
        self.inner.device.state(version)
    }

    /// Returns a receiver that is notified when a version's state changes or a thread ends.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.inner.device.changes()
    }

    /// Queries a version about an image, which must have the version's side. Dropping the future removes the image from
    /// the queue, if it still waits.
    ///
    /// A deadline that passes in the queue is noticed when the device is next free; a caller that must know sooner sets
    /// its own timer and drops the future.
    ///
    /// # Errors
    /// [`ServeError::NotLoaded`]; [`ServeError::Overloaded`] and [`ServeError::DeadlineUnmeetable`] at once;
    /// [`ServeError::DeadlineExceeded`]; [`ServeError::EngineFailed`] and [`ServeError::DeviceMemory`] when the network
    /// fails on this image alone; [`ServeError::Stopping`].
    pub(crate) async fn run(
        &self,
        version: &VersionName,
        image: Arc<Input>,
        deadline: Option<Instant>,
        priority: Priority,
    ) -> Result<Served, ServeError> {
        let device = &self.inner.device;
        let (ticket, answer) = device.enqueue(version, image, deadline, priority)?;
        let mut waiting = CancelOnDrop { device, ticket: Some(ticket) };
        let result = answer.await;
        // It has left the queue by now.
        waiting.ticket = None;
        result.unwrap_or_else(|_| {
            let detail = "the executor lost it".to_owned();
            Err(ServeError::EngineFailed { stage: version.clone().into(), detail })
        })
    }

    /// Returns true if images and loads are accepted: the pool is not stopping, and its threads live.
    #[must_use]
    pub(crate) fn is_accepting(&self) -> bool {
        self.inner.device.is_accepting()
    }

    /// Simulates a thread that ended unexpectedly.
    #[cfg(test)]
    pub(super) fn lose_a_thread(&self) {
        self.inner.device.thread_ended();
    }

    /// Refuses new work, serves queued images for at most `timeout`, and answers the rest with
    /// [`ServeError::Stopping`]; returns their number. A running batch is awaited. The pool is unusable afterwards.
    pub(crate) async fn drain(&self, timeout: Duration) -> usize {
        let now = Instant::now();
        match self.inner.device.stop(now.checked_add(timeout).unwrap_or(now)) {
            Some(end) => end.await.unwrap_or(0),
            None => 0,
        }
    }

    /// Stops at once: answers queued images with [`ServeError::Stopping`] and joins the threads. Blocks until the
    /// running batch or load is done.
    pub(crate) fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    fn keep(&self, thread: JoinHandle<()>) {
        self.threads.lock().push(thread);
    }

    fn shutdown(&self) {
        drop(self.device.stop(Instant::now()));
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // Both threads catch panics; any other has been printed.
            drop(thread.join());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Reports the end of one of the device's threads, by a panic too.
struct ThreadEnd<'a>(&'a Device);

impl Drop for ThreadEnd<'_> {
    fn drop(&mut self) {
        self.0.thread_ended();
    }
}

/// Removes an image from the queue when its caller drops the future.
struct CancelOnDrop<'a> {
    device: &'a Device,
    /// None once it is answered.
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.device.cancel(ticket);
        }
    }
}
