//! A pool of threads for work on pixels: bounded, ordered by deadline, sized to the cores.
//!
//! Decoding a phone's photo costs more than a small network's forward pass and would block the threads that handle
//! requests; cropping and judging faces costs less, but enough. Work waits here as it does for the device: the earliest
//! deadline first. Cancelled work leaves the queue; expired work is answered without being done.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{ServeError, Stage, panic_message};
use crate::vision::{DecodeLimits, ImageError};

/// The settings of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PixelPoolSettings {
    /// Number of threads; 0: one per core.
    pub n_threads: usize,
    /// Pieces of work that may wait.
    pub queue_capacity: usize,
    /// Limits on decoding one photo.
    pub limits: DecodeLimits,
}

impl Default for PixelPoolSettings {
    /// One thread per core; 256 pieces of work may wait.
    fn default() -> Self {
        Self { n_threads: 0, queue_capacity: 256, limits: DecodeLimits::default() }
    }
}

/// Why the work was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PixelError {
    /// The photo cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There was no room or no time.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// A cheap handle to the threads: clones share the pool, and dropping the last one stops it.
#[derive(Clone)]
pub(crate) struct PixelPool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    settings: PixelPoolSettings,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    waiting: BTreeMap<Key, Task>,
    n_arrivals: u64,
    n_threads: usize,
    /// Seconds that a piece takes, as an exponentially weighted average.
    seconds: f64,
    stopping: bool,
}

/// The order of the queue: work with a deadline first, the earlier deadline first; then by arrival.
type Key = (bool, Option<Instant>, u64);

/// Does the work and replies, or replies with the error; returns true if the work was done.
type Task = Box<dyn FnOnce(Result<&DecodeLimits, ServeError>) -> bool + Send>;

impl PixelPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`ServeError::NoThread`] when a thread cannot be started.
    pub(crate) fn start(settings: PixelPoolSettings) -> Result<Self, ServeError> {
        let n_threads = match settings.n_threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let state = State { waiting: BTreeMap::new(), n_arrivals: 0, n_threads, seconds: 0.02, stopping: false };
        let shared = Arc::new(Shared { settings, state: Mutex::new(state), work: Condvar::new() });
        let inner = Inner { shared: shared.clone(), threads: Mutex::default() };
        for thread_idx in 0..n_threads {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(format!("pixels-{thread_idx}"));
            let spawned = thread.spawn(move || shared.serve());
            let no_thread = |e: std::io::Error| ServeError::NoThread {
                name: format!("pixels-{thread_idx}"),
                detail: e.to_string(),
            };
            inner.threads.lock().push(spawned.map_err(no_thread)?);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs `work` with the decoding limits. Dropping the future removes it from the queue, if it still waits. A panic
    /// in it is contained.
    ///
    /// # Errors
    /// Those of `work`; as [`PixelError::Serve`]: [`ServeError::Overloaded`] at once when the queue is full,
    /// [`ServeError::DeadlineExceeded`], [`ServeError::Stopping`], [`ServeError::EngineFailed`] for a panic.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&DecodeLimits) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, PixelError> {
        let shared = &self.inner.shared;
        let (reply, answer) = oneshot::channel();
        let key = shared.enqueue(task(work, reply), deadline)?;
        let mut waiting = CancelOnDrop { shared, key: Some(key) };
        let result = answer.await;
        waiting.key = None;
        result.unwrap_or_else(|_| {
            let detail = "its thread ended unexpectedly".to_owned();
            Err(ServeError::EngineFailed { stage: Stage::Pixels, detail }.into())
        })
    }

    /// Answers all queued work with [`ServeError::Stopping`] and joins the threads. Blocks until running work is done.
    #[cfg(test)]
    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    fn shutdown(&self) {
        let waiting = {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            std::mem::take(&mut state.waiting)
        };
        self.shared.work.notify_all();
        for task in waiting.into_values() {
            task(Err(ServeError::Stopping));
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn enqueue(&self, task: Task, deadline: Option<Instant>) -> Result<Key, ServeError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.stopping {
            return Err(ServeError::Stopping);
        }
        if deadline.is_some_and(|due| due <= now) {
            return Err(ServeError::DeadlineExceeded { stage: Stage::Pixels });
        }
        let n_waiting = state.waiting.len();
        if n_waiting >= self.settings.queue_capacity {
            // On average, one of the threads is free after this long.
            let retry_after = Duration::from_secs_f64((state.seconds / state.n_threads as f64).clamp(0.01, 30.0));
            return Err(ServeError::Overloaded { stage: Stage::Pixels, n_waiting, retry_after });
        }
        let key = (deadline.is_none(), deadline, state.n_arrivals);
        state.n_arrivals += 1;
        state.waiting.insert(key, task);
        drop(state);
        self.work.notify_one();
        Ok(key)
    }

    /// Runs one thread.
    fn serve(&self) {
        while let Some(((_, deadline, _), task)) = self.next() {
            let start = Instant::now();
            if deadline.is_some_and(|due| due <= start) {
                task(Err(ServeError::DeadlineExceeded { stage: Stage::Pixels }));
            } else if task(Ok(&self.settings.limits)) {
                let mut state = self.state.lock();
                state.seconds += 0.1 * (start.elapsed().as_secs_f64() - state.seconds);
            }
        }
    }

    fn next(&self) -> Option<(Key, Task)> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(first) = state.waiting.pop_first() {
                return Some(first);
            }
            self.work.wait(&mut state);
        }
    }
}

/// Wraps the work together with the channel for its reply.
fn task<T: Send + 'static>(
    work: impl FnOnce(&DecodeLimits) -> Result<T, ImageError> + Send + 'static,
    reply: oneshot::Sender<Result<T, PixelError>>,
) -> Task {
    Box::new(move |go| {
        let limits = match go {
            Ok(limits) => limits,
            Err(refused) => {
                drop(reply.send(Err(refused.into())));
                return false;
            }
        };
        // The caller has left.
        if reply.is_closed() {
            return false;
        }
        let done = match catch_unwind(AssertUnwindSafe(|| work(limits))) {
            Ok(done) => done.map_err(PixelError::Image),
            Err(panic) => {
                let detail = panic_message(&*panic);
                Err(ServeError::EngineFailed { stage: Stage::Pixels, detail }.into())
            }
        };
        let is_done = done.is_ok();
        drop(reply.send(done));
        is_done
    })
}

struct CancelOnDrop<'a> {
    shared: &'a Shared,
    /// None once it is answered.
    key: Option<Key>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            drop(self.shared.state.lock().waiting.remove(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(n_threads: usize, queue_capacity: usize) -> PixelPool {
        PixelPool::start(PixelPoolSettings { n_threads, queue_capacity, ..Default::default() }).unwrap()
    }

    #[tokio::test]
    async fn work_is_done_and_its_error_returned() {
        let pool = pool(2, 100);
        let all = futures::future::try_join_all((0..20).map(|i| pool.run(None, move |_| Ok(i * i)))).await.unwrap();
        assert_eq!(all[7], 49);
        let refused = pool.run(None, |limits| {
            let found = String::new();
            Err::<(), _>(ImageError::UnsupportedFormat { found, n_bytes: limits.max_pixels as usize })
        });
        assert!(matches!(
            refused.await,
            Err(PixelError::Image(ImageError::UnsupportedFormat { n_bytes: 50_000_000, .. }))
        ));
        let panicked = pool.run(None, |_| -> Result<(), ImageError> { panic!("at the disco") }).await;
        assert!(
            matches!(panicked, Err(PixelError::Serve(ServeError::EngineFailed { detail, .. })) if detail.contains("disco"))
        );
        assert!(pool.run(None, |_| Ok(())).await.is_ok());
    }

    #[tokio::test]
    async fn late_work_and_a_full_queue_are_refused() {
        let pool = pool(1, 0);
        let full = pool.run(None, |_| Ok(())).await;
        assert!(matches!(full, Err(PixelError::Serve(ServeError::Overloaded { n_waiting: 0, .. }))));
        let late = pool.run(Some(Instant::now()), |_| Ok(())).await;
        assert!(matches!(late, Err(PixelError::Serve(ServeError::DeadlineExceeded { .. }))));
    }

    #[test]
    fn the_earliest_deadline_is_first_and_the_cancelled_leave() {
        let settings = PixelPoolSettings { queue_capacity: 3, ..Default::default() };
        let state = State { waiting: BTreeMap::new(), n_arrivals: 0, n_threads: 1, seconds: 0.1, stopping: false };
        // Without threads, the queue keeps its content.
        let shared = Shared { settings, state: Mutex::new(state), work: Condvar::new() };
        let in_secs = |secs| Some(Instant::now() + Duration::from_secs(secs));
        let done = Arc::new(Mutex::new(Vec::new()));
        let put = |number: u32, deadline| {
            let done = done.clone();
            let work = move |_: Result<&DecodeLimits, ServeError>| {
                done.lock().push(number);
                true
            };
            shared.enqueue(Box::new(work), deadline)
        };
        put(1, None).unwrap();
        let second = put(2, in_secs(90)).unwrap();
        put(3, in_secs(60)).unwrap();
        let Err(ServeError::Overloaded { n_waiting: 3, retry_after, .. }) = put(4, None) else { panic!() };
        assert_eq!(retry_after, Duration::from_millis(100));
        drop(CancelOnDrop { shared: &shared, key: Some(second) });
        put(4, in_secs(30)).unwrap();
        for _ in 0..3 {
            shared.next().unwrap().1(Ok(&DecodeLimits::default()));
        }
        assert_eq!(*done.lock(), [4, 3, 1]);
    }

    #[tokio::test]
    async fn a_stopped_pool_takes_nothing() {
        let pool = pool(1, 8);
        pool.shutdown();
        let refused = pool.run(None, |_| Ok(())).await;
        assert!(matches!(refused, Err(PixelError::Serve(ServeError::Stopping))));
        pool.shutdown();
    }
}
