//! The handle: load, run, unload, drain.

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
/// A cheap handle: clones share the pool. When the last one is dropped the pool stops, and what waits is answered with
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
    /// [`ServeError::NoThread`] when the system gives no thread.
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
            // When the second cannot be had, `Inner`'s drop ends the first.
            inner.keep(spawned.map_err(|e| ServeError::NoThread {
                name: format!("{name}-{}", device.settings.device),
                detail: e.to_string(),
            })?);
        }
        Ok(Self { inner })
    }

    /// Loads a version: builds its engine, compares it with the version's golden outputs, warms every batch size, and
    /// lets it serve. Other versions go on serving meanwhile. One that is loaded already is left as it is; one that
    /// another call is loading is waited for. Dropping the future does not stop the load.
    ///
    /// # Errors
    /// [`ServeError::GoldenMismatch`], [`ServeError::DeviceMemory`] (also when over the budget),
    /// [`ServeError::EngineFailed`], [`ServeError::Overloaded`] when too many wait to be loaded,
    /// [`ServeError::Stopping`].
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

    /// Unloads a version: new images are refused, those that wait are answered, then its memory is given back. One that
    /// is not there is unloaded already; one that is being loaded is waited for. Dropping the future does not stop it.
    pub(crate) async fn unload(&self, version: &VersionName) {
        while let Some(change) = self.inner.device.unload(version) {
            match change {
                // However the load ended: the next round sees what there is to unload.
                Change::Loaded(end) => drop(end.await),
                // Gone, or the pool has stopped and everything with it.
                Change::Unloaded(end) | Change::Gone(end, _) => return drop(end.await),
            }
        }
    }

    /// Builds a version's engine, asks it about the test pattern of this seed ([`super::golden_pixels`]), and drops it:
    /// the golden outputs of a version that is not registered yet. Serving goes on meanwhile.
    ///
    /// # Errors
    /// [`ServeError::EngineFailed`], [`ServeError::DeviceMemory`], [`ServeError::Overloaded`] when too many wait to be
    /// loaded, [`ServeError::Stopping`].
    pub(crate) async fn probe(&self, source: EngineSource, seed: u64) -> Result<Vec<f32>, ServeError> {
        let answer = self.inner.device.probe(source, seed)?;
        answer.await.unwrap_or(Err(ServeError::Stopping))
    }

    /// What the version is on this device.
    #[must_use]
    pub(crate) fn state(&self, version: &VersionName) -> LoadState {
        self.inner.device.state(version)
    }

    /// A counter that rises whenever a version's state changes, or the executor ends.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.device.changes()
    }

    /// Queries a version about an image, which must have the version's side. Dropping the
    /// future takes the image out of the queue, if it still waits there.
    ///
    /// A deadline that passes while the image waits is noticed when the device is next free; a caller that must know
    /// sooner keeps a timer of its own and drops the future.
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

    /// Whether images and loads are taken: the pool is not stopping, and its threads live.
    #[must_use]
    pub(crate) fn is_taking(&self) -> bool {
        self.inner.device.is_taking()
    }

    /// Stands in for a thread that ended out of order.
    #[cfg(test)]
    pub(super) fn lose_a_thread(&self) {
        self.inner.device.thread_ended();
    }

    /// Takes nothing more, and serves what waits for at most `timeout`, then answers the rest with
    /// [`ServeError::Stopping`]; says how many these were. A batch that is running then is waited for. The pool cannot
    /// be used afterwards.
    pub(crate) async fn drain(&self, timeout: Duration) -> usize {
        let now = Instant::now();
        match self.inner.device.stop(now.checked_add(timeout).unwrap_or(now)) {
            Some(end) => end.await.unwrap_or(0),
            None => 0,
        }
    }

    /// Stops at once, answering what waits with [`ServeError::Stopping`], and joins the threads. Blocks for as long as
    /// the batch or the load in flight takes.
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
            // Both bodies contain panics; one that came through has been printed.
            drop(thread.join());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Reports the end of one of the device's threads, however it came.
struct ThreadEnd<'a>(&'a Device);

impl Drop for ThreadEnd<'_> {
    fn drop(&mut self) {
        self.0.thread_ended();
    }
}

/// Takes an image out of the queue when its caller goes away.
struct CancelOnDrop<'a> {
    device: &'a Device,
    /// Nothing once it is answered.
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.device.cancel(ticket);
        }
    }
}
