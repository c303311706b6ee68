//! The state that one device's handles, executor and loader share: the scheduler, the versions and their engines.
//!
//! One mutex guards it and is held only briefly: no engine runs, is built or is dropped, and no waiter is answered,
//! under it. Each of the two threads sleeps on a condition variable of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::{
    EngineSource, Input, InputKind, LoadState, Priority, ServeError, Served, ServingSettings,
    exchange::{Change, ExecutorTask, LoadedEngine, LoaderTask, Probe, QueuedImage, Reply, Report, Warmed},
    scheduler::{Arrival, Capacity, Scheduler, Ticket, Waiting},
};
use crate::names::VersionName;

/// The most versions that may wait to be loaded or probed on one device.
const MAX_LOADER_TASKS: usize = 16;

/// A version's place in its lifecycle.
#[derive(Debug)]
enum Phase {
    Loading,
    Loaded,
    Draining,
    Failed(ServeError),
}

impl Phase {
    fn state(&self) -> LoadState {
        match self {
            Self::Loading => LoadState::Loading,
            Self::Loaded => LoadState::Loaded,
            Self::Draining => LoadState::Unloaded,
            Self::Failed(_) => LoadState::Failed,
        }
    }
}

struct Slot {
    phase: Phase,
    /// Absent while the executor runs it.
    engine: Option<LoadedEngine>,
    input: InputKind,
    memory_bytes: u64,
    /// The callers that wait for the present change to end.
    waiters: Vec<oneshot::Sender<Result<(), ServeError>>>,
}

struct State {
    scheduler: Scheduler<QueuedImage>,
    slots: BTreeMap<VersionName, Slot>,
    /// At most [`MAX_LOADER_TASKS`].
    loader_tasks: VecDeque<LoaderTask>,
    retired: Vec<LoadedEngine>,
    /// Once set, no new work is accepted; queued work is served until then.
    stop_by: Option<Instant>,
    /// The executor has ended in order.
    stopped: bool,
    /// A thread has ended unexpectedly: nothing can be answered any more.
    is_broken: bool,
    stop_waiters: Vec<oneshot::Sender<usize>>,
}

/// The state of one device.
pub(super) struct Device {
    pub(super) settings: ServingSettings,
    state: Mutex<State>,
    /// Wakes the executor.
    work: Condvar,
    /// Wakes the loader.
    loader_tasks: Condvar,
    /// Notified when a version's state changes.
    changes: watch::Sender<()>,
}

impl Device {
    pub(super) fn new(settings: ServingSettings) -> Self {
        let state = State {
            scheduler: Scheduler::new(),
            slots: BTreeMap::new(),
            loader_tasks: VecDeque::new(),
            retired: Vec::new(),
            stop_by: None,
            stopped: false,
            is_broken: false,
            stop_waiters: Vec::new(),
        };
        Self {
            settings,
            state: Mutex::new(state),
            work: Condvar::new(),
            loader_tasks: Condvar::new(),
            changes: watch::Sender::new(()),
        }
    }

    // Called by the handles.

    pub(super) fn enqueue(
        &self,
        version: &VersionName,
        image: Arc<Input>,
        deadline: Option<Instant>,
        priority: Priority,
    ) -> Result<(Ticket, oneshot::Receiver<Result<Served, ServeError>>), ServeError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.check_accepting()?;
        let State { scheduler, slots, .. } = &mut *state;
        let Some(slot) = slots.get(version) else {
            return Err(ServeError::NotLoaded { version: version.clone() });
        };
        match &slot.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Loaded => {}
            Phase::Loading | Phase::Draining => return Err(ServeError::NotLoaded { version: version.clone() }),
        }
        if !image.is_of(&slot.input) {
            let detail = format!("the image is not what the network reads: {:?}", slot.input);
            return Err(ServeError::EngineFailed { stage: version.clone().into(), detail });
        }
        let (reply, answer) = oneshot::channel();
        let n_bytes = image.n_bytes();
        let arrival = Arrival { priority, deadline, n_bytes, payload: QueuedImage { image, reply } };
        let ticket = scheduler.enqueue(version, arrival, now)?;
        drop(state);
        self.work.notify_one();
        Ok((ticket, answer))
    }

    pub(super) fn cancel(&self, ticket: &Ticket) {
        let cancelled = self.state.lock().scheduler.cancel(ticket);
        if cancelled.is_some() {
            // A drain may have waited for this image alone.
            self.work.notify_one();
        }
    }

    /// Queues a version's load. Returns `Ok(None)` if it is loaded, otherwise a receiver of the outcome.
    pub(super) fn load(&self, source: EngineSource) -> Result<Option<Change>, ServeError> {
        let memory_bytes: u64 = source.tensors.iter().map(|t| t.bytes.len() as u64).sum();
        let version = source.version.clone();
        let mut state = self.state.lock();
        state.check_accepting()?;
        let (waiter, change) = oneshot::channel();
        match state.slots.get_mut(&version) {
            Some(Slot { phase: Phase::Loaded, .. }) => return Ok(None),
            Some(slot @ Slot { phase: Phase::Loading, .. }) => {
                slot.waiters.push(waiter);
                return Ok(Some(Change::Loaded(change)));
            }
            Some(slot @ Slot { phase: Phase::Draining, .. }) => {
                slot.waiters.push(waiter);
                return Ok(Some(Change::Gone(change, Box::new(source))));
            }
            Some(Slot { phase: Phase::Failed(_), .. }) | None => {}
        }
        state.room_for_loader_task(&version)?;
        let used: u64 = state.slots.values().map(|slot| slot.memory_bytes).sum();
        if let Some(budget) = self.settings.memory_budget_bytes.filter(|&budget| used + memory_bytes > budget) {
            let detail = format!(
                "it needs {memory_bytes} bytes, {used} of the budget's {budget} are taken; unload another version first"
            );
            return Err(ServeError::DeviceMemory { version, detail });
        }
        let input = source.input.clone();
        let slot = Slot { phase: Phase::Loading, engine: None, input, memory_bytes, waiters: vec![waiter] };
        state.slots.insert(version, slot);
        state.loader_tasks.push_back(LoaderTask::Load(Box::new(source)));
        drop(state);
        self.loader_tasks.notify_one();
        self.changed();
        Ok(Some(Change::Loaded(change)))
    }

    pub(super) fn probe(
        &self,
        source: EngineSource,
        seed: u64,
    ) -> Result<oneshot::Receiver<Result<Vec<f32>, ServeError>>, ServeError> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state.lock();
        state.check_accepting()?;
        state.room_for_loader_task(&source.version)?;
        state.loader_tasks.push_back(LoaderTask::Probe(Box::new(Probe { source, seed, reply })));
        drop(state);
        self.loader_tasks.notify_one();
        Ok(answer)
    }

    /// Starts unloading a version. Returns `None` if it is absent.
    pub(super) fn unload(&self, version: &VersionName) -> Option<Change> {
        let mut state = self.state.lock();
        let State { scheduler, slots, .. } = &mut *state;
        let slot = slots.get_mut(version)?;
        let (waiter, change) = oneshot::channel();
        let change = match &slot.phase {
            Phase::Failed(_) => {
                slots.remove(version);
                drop(state);
                self.changed();
                return None;
            }
            Phase::Loading => Change::Loaded(change),
            Phase::Loaded | Phase::Draining => {
                slot.phase = Phase::Draining;
                scheduler.drain_version(version);
                Change::Unloaded(change)
            }
        };
        slot.waiters.push(waiter);
        drop(state);
        self.work.notify_one();
        self.changed();
        Some(change)
    }

    pub(super) fn state(&self, version: &VersionName) -> LoadState {
        self.state.lock().slots.get(version).map_or(LoadState::Unloaded, |slot| slot.phase.state())
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    pub(super) fn is_accepting(&self) -> bool {
        let state = self.state.lock();
        state.stop_by.is_none() && !state.is_broken
    }

    /// Refuses new work, and ends the threads once all is served or `by` has passed. The receiver gets the number of
    /// images left then. Returns `None` if the device has stopped already.
    pub(super) fn stop(&self, by: Instant) -> Option<oneshot::Receiver<usize>> {
        let mut state = self.state.lock();
        state.stop_by = Some(state.stop_by.map_or(by, |earlier| earlier.min(by)));
        let (waiter, ended) = oneshot::channel();
        let ended = (!state.stopped && !state.is_broken).then(|| {
            state.stop_waiters.push(waiter);
            ended
        });
        drop(state);
        self.work.notify_one();
        self.loader_tasks.notify_one();
        ended
    }

    /// Records that one of the threads has ended. Unless a stop was requested, every waiter gets an error and the
    /// watchers are notified, since no version can answer any more.
    pub(super) fn thread_ended(&self) {
        let mut state = self.state.lock();
        if state.stop_by.is_some() || state.is_broken {
            return;
        }
        state.is_broken = true;
        let mut replies = Vec::new();
        let versions: Vec<_> = state.slots.keys().cloned().collect();
        for version in versions {
            state.fail(&version, &thread_lost(), &mut replies);
        }
        state.loader_tasks.clear();
        // Ends the other thread, too.
        state.stop_by = Some(Instant::now());
        replies.extend(state.stop_waiters.drain(..).map(|waiter| Reply::Stopped(waiter, 0)));
        drop(state);
        tracing::error!("a thread of the device has ended; no version answers any more, restart the server");
        self.work.notify_one();
        self.loader_tasks.notify_one();
        replies.into_iter().for_each(Reply::send);
        self.changed();
    }

    // Called by the executor.

    /// Waits for the executor's next task. Appends the replies that are due; the caller sends them without the lock.
    pub(super) fn next_executor_task(&self, replies: &mut Vec<Reply>) -> ExecutorTask {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if state.stop_by.is_some_and(|by| by <= now || state.scheduler.is_empty()) {
                state.stop(replies);
                drop(state);
                self.loader_tasks.notify_one();
                return ExecutorTask::Stop;
            }
            let next = state.scheduler.next_batch(now);
            for (version, waiting) in next.expired {
                let error = ServeError::DeadlineExceeded { stage: version.into() };
                replies.push(Reply::Image(waiting.payload.reply, error));
            }
            if let Some(batch) = next.batch {
                let Some(engine) = state.slots.get_mut(&batch.version).and_then(|slot| slot.engine.take()) else {
                    replies.extend(refuse(batch.entries, &ServeError::NotLoaded { version: batch.version }));
                    state.scheduler.finished();
                    return ExecutorTask::Reply;
                };
                return ExecutorTask::Run(batch, engine);
            }
            if state.settle_drains(replies) {
                self.loader_tasks.notify_one();
                self.changed();
            }
            if !replies.is_empty() {
                return ExecutorTask::Reply;
            }
            self.work.wait(&mut state);
        }
    }

    /// Takes the engine back after a batch.
    pub(super) fn return_engine(
        &self,
        version: &VersionName,
        engine: LoadedEngine,
        report: Report,
        replies: &mut Vec<Reply>,
    ) {
        let mut state = self.state.lock();
        state.scheduler.finished();
        for (n_images, took) in report.took {
            state.scheduler.record(version, n_images, took);
        }
        if let Some(max_batch) = report.max_batch {
            state.scheduler.limit_batch(version, max_batch);
        }
        match report.broken {
            Some(error) => {
                state.retired.push(engine);
                state.fail(version, &error, replies);
                self.loader_tasks.notify_one();
                self.changed();
            }
            None => match state.slots.get_mut(version) {
                Some(slot) => slot.engine = Some(engine),
                None => state.retired.push(engine),
            },
        }
    }

    /// Fails the versions whose engine was lost in a defect of the executor itself.
    pub(super) fn recover(&self, detail: &str, replies: &mut Vec<Reply>) {
        let mut state = self.state.lock();
        state.scheduler.finished();
        let lost = |(version, slot): (&VersionName, &Slot)| {
            let serving = matches!(slot.phase, Phase::Loaded | Phase::Draining);
            (serving && slot.engine.is_none()).then(|| version.clone())
        };
        let lost: Vec<_> = state.slots.iter().filter_map(lost).collect();
        for version in lost {
            let error = ServeError::EngineFailed { stage: version.clone().into(), detail: detail.to_owned() };
            state.fail(&version, &error, replies);
        }
        self.changed();
    }

    // Called by the loader.

    pub(super) fn next_loader_task(&self) -> LoaderTask {
        let mut state = self.state.lock();
        loop {
            if !state.retired.is_empty() {
                return LoaderTask::Drop(mem::take(&mut state.retired));
            }
            if state.stopped {
                return LoaderTask::Stop;
            }
            if state.stop_by.is_none()
                && let Some(task) = state.loader_tasks.pop_front()
            {
                return task;
            }
            self.loader_tasks.wait(&mut state);
        }
    }

    /// Starts serving a loaded version, or records that its load failed.
    pub(super) fn loaded(&self, version: &VersionName, result: Result<Warmed, ServeError>) {
        let mut state = self.state.lock();
        let State { scheduler, slots, retired, .. } = &mut *state;
        let Some(slot) = slots.get_mut(version) else {
            retired.extend(result.map(|warmed| warmed.engine));
            return;
        };
        let waiters = mem::take(&mut slot.waiters);
        let outcome = match result {
            Ok(warmed) => {
                let fits = warmed.took.last().map_or(1, |&(bucket, _)| bucket);
                let capacity = Capacity { n_images: self.settings.queue_capacity, n_bytes: self.settings.queue_bytes };
                scheduler.add_version(version, capacity, self.settings.max_batch.min(fits));
                warmed.took.into_iter().for_each(|(bucket, took)| scheduler.record(version, bucket, took));
                slot.engine = Some(warmed.engine);
                slot.phase = Phase::Loaded;
                Ok(())
            }
            Err(error) => {
                (slot.phase, slot.memory_bytes) = (Phase::Failed(error.clone()), 0);
                Err(error)
            }
        };
        drop(state);
        self.changed();
        waiters.into_iter().for_each(|waiter| Reply::Change(waiter, outcome.clone()).send());
    }
}

impl State {
    fn check_accepting(&self) -> Result<(), ServeError> {
        if self.is_broken {
            return Err(thread_lost());
        }
        if self.stop_by.is_some() { Err(ServeError::Stopping) } else { Ok(()) }
    }

    fn room_for_loader_task(&self, version: &VersionName) -> Result<(), ServeError> {
        let n_waiting = self.loader_tasks.len();
        if n_waiting < MAX_LOADER_TASKS {
            return Ok(());
        }
        let retry_after = Duration::from_secs(1);
        Err(ServeError::Overloaded { stage: version.clone().into(), n_waiting, retry_after })
    }

    /// Unloads draining versions that have no queued or running work. Returns true if engines were released.
    fn settle_drains(&mut self, replies: &mut Vec<Reply>) -> bool {
        let idle = |(version, slot): (&VersionName, &Slot)| {
            (matches!(slot.phase, Phase::Draining) && self.scheduler.is_idle(version)).then(|| version.clone())
        };
        let idle: Vec<_> = self.slots.iter().filter_map(idle).collect();
        for version in &idle {
            let left = self.scheduler.remove_version(version);
            replies.extend(refuse(left, &ServeError::NotLoaded { version: version.clone() }));
            if let Some(slot) = self.slots.remove(version) {
                self.retired.extend(slot.engine);
                replies.extend(slot.waiters.into_iter().map(|waiter| Reply::Change(waiter, Ok(()))));
            }
        }
        !idle.is_empty()
    }

    /// Closes a version whose engine is unusable. A draining version is removed.
    fn fail(&mut self, version: &VersionName, error: &ServeError, replies: &mut Vec<Reply>) {
        replies.extend(refuse(self.scheduler.remove_version(version), error));
        let Some(slot) = self.slots.get_mut(version) else { return };
        replies.extend(mem::take(&mut slot.waiters).into_iter().map(|waiter| Reply::Change(waiter, Ok(()))));
        if matches!(slot.phase, Phase::Draining) {
            self.slots.remove(version);
        } else {
            (slot.phase, slot.memory_bytes) = (Phase::Failed(error.clone()), 0);
        }
    }

    /// Answers every queued image and pending change, and gives up the engines.
    fn stop(&mut self, replies: &mut Vec<Reply>) {
        let left = self.scheduler.take_all();
        let n_left = left.len();
        replies.extend(refuse(left.into_iter().map(|(_, waiting)| waiting), &ServeError::Stopping));
        for slot in mem::take(&mut self.slots).into_values() {
            self.retired.extend(slot.engine);
            // A stop fulfils a pending unload.
            let outcome = if matches!(slot.phase, Phase::Draining) { Ok(()) } else { Err(ServeError::Stopping) };
            replies.extend(slot.waiters.into_iter().map(|waiter| Reply::Change(waiter, outcome.clone())));
        }
        // The caller of a dropped probe sees a closed channel.
        self.loader_tasks.clear();
        self.stopped = true;
        replies.extend(self.stop_waiters.drain(..).map(|waiter| Reply::Stopped(waiter, n_left)));
    }
}

fn thread_lost() -> ServeError {
    let detail = "it ended out of order; restart the server".to_owned();
    ServeError::NoThread { name: "the device".to_owned(), detail }
}

fn refuse<'a>(
    entries: impl IntoIterator<Item = Waiting<QueuedImage>> + 'a,
    error: &'a ServeError,
) -> impl Iterator<Item = Reply> + 'a {
    entries.into_iter().map(|waiting| Reply::Image(waiting.payload.reply, error.clone()))
}
