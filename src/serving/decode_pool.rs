//! Decoding on threads of its own: bounded, by deadline, sized to the cores.
//!
//! Decoding a phone's photo costs more than a small network's forward pass, and would stall the threads that carry
//! requests. Photos wait here as they do for the device: the earliest deadline first, what is cancelled leaves the
//! queue, and what has expired is answered without being decoded.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{ServeError, panic_message};
use crate::vision::{DecodeLimits, ImageError, Pixels, decode_square};

/// What the pool is called in errors.
const NAME: &str = "the decoder";

/// What a decode pool is made with.
#[derive(Clone, Copy, Debug)]
pub struct DecodePoolSettings {
    /// Threads; 0: as many as cores.
    pub n_threads: usize,
    /// Photos that may wait.
    pub queue_capacity: usize,
    /// What one photo may cost.
    pub limits: DecodeLimits,
}

impl Default for DecodePoolSettings {
    /// A thread a core, 256 photos waiting.
    fn default() -> Self {
        Self { n_threads: 0, queue_capacity: 256, limits: DecodeLimits::default() }
    }
}

/// A photo, ready for a network.
#[derive(Clone, Debug)]
pub struct DecodedPhoto {
    /// The network's input.
    pub pixels: Arc<Pixels>,
    /// The photo's own width after orientation, in pixels, whatever it was decoded at.
    pub width: u32,
    /// The photo's own height after orientation, in pixels.
    pub height: u32,
}

/// Why a photo was not decoded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DecodeError {
    /// The photo cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There was no room or no time.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl DecodeError {
    /// Who must act.
    #[must_use]
    pub fn kind(&self) -> crate::error::Kind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Serve(error) => error.kind(),
        }
    }
}

/// The decoding threads. A cheap handle: clones share the pool, and dropping the last one stops it.
#[derive(Clone)]
pub struct DecodePool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    settings: DecodePoolSettings,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    waiting: BTreeMap<Key, Job>,
    n_arrivals: u64,
    n_threads: usize,
    /// Seconds that a photo takes, as an exponentially weighted average.
    seconds: f64,
    stopping: bool,
}

/// Those with a deadline first, the earlier before the later; then by arrival.
type Key = (bool, Option<Instant>, u64);

struct Job {
    bytes: Bytes,
    side_px: u32,
    reply: oneshot::Sender<Result<DecodedPhoto, DecodeError>>,
}

impl DecodePool {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`ServeError::EngineFailed`] when the system gives no thread.
    pub fn start(settings: DecodePoolSettings) -> Result<Self, ServeError> {
        let n_threads = match settings.n_threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let state = State { waiting: BTreeMap::new(), n_arrivals: 0, n_threads, seconds: 0.02, stopping: false };
        let shared = Arc::new(Shared { settings, state: Mutex::new(state), work: Condvar::new() });
        let inner = Inner { shared: shared.clone(), threads: Mutex::default() };
        for thread_idx in 0..n_threads {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(format!("decode-{thread_idx}"));
            let spawned = thread.spawn(move || shared.serve());
            let thread = spawned.map_err(|e| ServeError::EngineFailed {
                version: NAME.to_owned(),
                detail: format!("the system gives it no thread: {e}"),
            })?;
            inner.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Decodes a photo and cuts it to a square of `side_px`. Dropping the future takes it out of the queue, if it still
    /// waits there.
    ///
    /// # Errors
    /// [`DecodeError::Image`] when the photo cannot be used; as [`DecodeError::Serve`]: [`ServeError::Overloaded`] at
    /// once when the queue is full, [`ServeError::DeadlineExceeded`], [`ServeError::Stopping`].
    pub async fn decode(
        &self,
        bytes: Bytes,
        side_px: u32,
        deadline: Option<Instant>,
    ) -> Result<DecodedPhoto, DecodeError> {
        let shared = &self.inner.shared;
        let (key, answer) = shared.enqueue(bytes, side_px, deadline)?;
        let mut waiting = CancelOnDrop { shared, key: Some(key) };
        let result = answer.await;
        waiting.key = None;
        result.unwrap_or_else(|_| {
            let detail = "a decoding thread lost it".to_owned();
            Err(ServeError::EngineFailed { version: NAME.to_owned(), detail }.into())
        })
    }

    /// Photos that wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.inner.shared.lock().waiting.len()
    }

    /// Stops: what waits is answered with [`ServeError::Stopping`], and the threads are joined. Blocks for as long as
    /// the photos being decoded take.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    fn shutdown(&self) {
        let waiting = {
            let mut state = self.shared.lock();
            state.stopping = true;
            std::mem::take(&mut state.waiting)
        };
        self.shared.work.notify_all();
        for job in waiting.into_values() {
            drop(job.reply.send(Err(ServeError::Stopping.into())));
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        &self,
        bytes: Bytes,
        side_px: u32,
        deadline: Option<Instant>,
    ) -> Result<(Key, oneshot::Receiver<Result<DecodedPhoto, DecodeError>>), ServeError> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.stopping {
            return Err(ServeError::Stopping);
        }
        if deadline.is_some_and(|due| due <= now) {
            return Err(ServeError::DeadlineExceeded { version: NAME.to_owned() });
        }
        let n_waiting = state.waiting.len();
        if n_waiting >= self.settings.queue_capacity {
            // One thread of so many is free after its share of a photo's time.
            let retry_after = Duration::from_secs_f64((state.seconds / state.n_threads as f64).clamp(0.01, 30.0));
            return Err(ServeError::Overloaded { version: NAME.to_owned(), n_waiting, retry_after });
        }
        let key = (deadline.is_none(), deadline, state.n_arrivals);
        state.n_arrivals += 1;
        let (reply, answer) = oneshot::channel();
        state.waiting.insert(key, Job { bytes, side_px, reply });
        drop(state);
        self.work.notify_one();
        Ok((key, answer))
    }

    /// A thread's body.
    fn serve(&self) {
        while let Some(((_, deadline, _), job)) = self.next() {
            if job.reply.is_closed() {
                continue;
            }
            let start = Instant::now();
            if deadline.is_some_and(|due| due <= start) {
                drop(job.reply.send(Err(ServeError::DeadlineExceeded { version: NAME.to_owned() }.into())));
                continue;
            }
            let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(&job)));
            let decoded = decoded.unwrap_or_else(|panic| {
                let detail = panic_message(&*panic);
                Err(ServeError::EngineFailed { version: NAME.to_owned(), detail }.into())
            });
            if decoded.is_ok() {
                let mut state = self.lock();
                state.seconds += 0.1 * (start.elapsed().as_secs_f64() - state.seconds);
            }
            drop(job.reply.send(decoded));
        }
    }

    fn next(&self) -> Option<(Key, Job)> {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(first) = state.waiting.pop_first() {
                return Some(first);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn decode(&self, job: &Job) -> Result<DecodedPhoto, DecodeError> {
        let photo = decode_square(&job.bytes, &self.settings.limits, job.side_px)?;
        Ok(DecodedPhoto { pixels: Arc::new(photo.pixels), width: photo.full_width_px, height: photo.full_height_px })
    }
}

struct CancelOnDrop<'a> {
    shared: &'a Shared,
    /// Nothing once it is answered.
    key: Option<Key>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            drop(self.shared.lock().waiting.remove(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTRAIT: &[u8] = include_bytes!("../../tests/fixtures/portrait.jpg");

    fn pool(n_threads: usize, queue_capacity: usize) -> DecodePool {
        DecodePool::start(DecodePoolSettings { n_threads, queue_capacity, ..Default::default() }).unwrap()
    }

    #[tokio::test]
    async fn decodes_and_says_the_photos_size() {
        let pool = pool(2, 100);
        let portrait = || pool.decode(Bytes::from_static(PORTRAIT), 64, None);
        let all = futures::future::try_join_all((0..20).map(|_| portrait())).await.unwrap();
        for photo in &all {
            assert_eq!((photo.width, photo.height, photo.pixels.side_px), (320, 320, 64));
            assert_eq!(photo.pixels, all[0].pixels);
        }
        let text = pool.decode(Bytes::from_static(b"this is text"), 64, None).await;
        assert!(matches!(text, Err(DecodeError::Image(ImageError::UnsupportedFormat { n_bytes: 12 }))));
        assert!(portrait().await.is_ok());
    }

    #[tokio::test]
    async fn late_photos_and_a_full_queue_are_refused() {
        let pool = pool(1, 0);
        let full = pool.decode(Bytes::from_static(PORTRAIT), 64, None).await;
        assert!(matches!(full, Err(DecodeError::Serve(ServeError::Overloaded { n_waiting: 0, .. }))));
        let late = pool.decode(Bytes::from_static(PORTRAIT), 64, Some(Instant::now())).await;
        assert!(matches!(late, Err(DecodeError::Serve(ServeError::DeadlineExceeded { .. }))));
    }

    #[test]
    fn the_earliest_deadline_is_first_and_the_cancelled_leave() {
        let settings = DecodePoolSettings { queue_capacity: 3, ..Default::default() };
        let state = State { waiting: BTreeMap::new(), n_arrivals: 0, n_threads: 1, seconds: 0.1, stopping: false };
        // No thread serves it: the queue stands still.
        let shared = Shared { settings, state: Mutex::new(state), work: Condvar::new() };
        let in_secs = |secs| Some(Instant::now() + Duration::from_secs(secs));
        let put = |side_px, deadline| shared.enqueue(Bytes::new(), side_px, deadline);
        let (_first, _a) = put(1, None).unwrap();
        let (second, _b) = put(2, in_secs(90)).unwrap();
        let (_third, _c) = put(3, in_secs(60)).unwrap();
        let Err(ServeError::Overloaded { n_waiting: 3, retry_after, .. }) = put(4, None) else { panic!() };
        assert_eq!(retry_after, Duration::from_millis(100));
        drop(CancelOnDrop { shared: &shared, key: Some(second) });
        let (_fourth, _d) = put(4, in_secs(30)).unwrap();
        let order: Vec<_> = (0..3).filter_map(|_| shared.next()).map(|(_, job)| job.side_px).collect();
        assert_eq!(order, [4, 3, 1]);
    }

    #[tokio::test]
    async fn a_stopped_pool_takes_nothing() {
        let pool = pool(1, 8);
        pool.shutdown();
        let refused = pool.decode(Bytes::from_static(PORTRAIT), 64, None).await;
        assert!(matches!(refused, Err(DecodeError::Serve(ServeError::Stopping))));
        pool.shutdown();
    }
}
