//! A pure state machine that chooses the next images for the device, and which to refuse.
//!
//! There is one scheduler per device and one queue per version. It has no clock, lock or thread: the time is an
//! argument, so every decision can be tested. Its rules:
//!
//! - A queue is bounded in images and in bytes. An image that would be late, by the measured times, is refused on
//!   arrival ([`Scheduler::enqueue`]).
//! - Within a queue the higher priority goes first, then the earlier deadline, then the earlier arrival.
//! - A batch is formed when the device is free, from the images that wait then ([`Scheduler::next_batch`]); none is
//!   held back to wait for more.
//! - Between queues of equal priority, the version that has used the device least goes first (start-time fair queuing,
//!   Goyal, Vin and Cheng 1996), so that a busy version cannot starve a quiet one.
//! - An expired image is returned to be answered and never reaches the device; a cancelled one leaves at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{ServeError, latency::LatencyTable};
use crate::{names::VersionName, nn::BUCKETS};

/// Returns the smallest bucket that holds `n_images`, or the largest bucket.
fn bucket_for(n_images: usize) -> usize {
    BUCKETS.into_iter().find(|&b| b >= n_images).unwrap_or(BUCKETS[BUCKETS.len() - 1])
}

/// Returns the largest bucket of at most `n_images`, or 1.
fn bucket_within(n_images: usize) -> usize {
    BUCKETS.into_iter().rfind(|&b| b <= n_images).unwrap_or(1)
}

/// The order of images when more wait than the device can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// Before everything else.
    #[cfg_attr(not(test), expect(dead_code, reason = "no caller has a right to it yet"))]
    High,
    /// The default.
    #[default]
    Normal,
    /// Only when nothing else waits: bulk work.
    Low,
}

/// When an answer is due. Images without a deadline come after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    At(Instant),
    Never,
}

/// The order within a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    priority: Priority,
    due: Due,
    arrival: u64,
}

/// Identifies a waiting image, to cancel it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    version: VersionName,
    key: Key,
}

/// An image that arrives.
#[derive(Debug)]
pub(crate) struct Arrival<T> {
    pub(crate) priority: Priority,
    /// When its answer is due.
    pub(crate) deadline: Option<Instant>,
    /// Host memory that it holds while it waits.
    pub(crate) n_bytes: usize,
    /// Data that the caller attaches to it.
    pub(crate) payload: T,
}

/// The limits of one version's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) n_images: usize,
    /// A single larger image may wait alone.
    pub(crate) n_bytes: usize,
}

/// An image in a queue.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    /// When it arrived.
    pub(crate) since: Instant,
    /// When its answer is due.
    pub(crate) deadline: Option<Instant>,
    /// Host memory that it holds.
    n_bytes: usize,
    /// Data that the caller attached to it.
    pub(crate) payload: T,
}

/// Images for one run of the device.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    pub(crate) version: VersionName,
    /// At least one, at most the version's largest batch; none has expired.
    pub(crate) entries: Vec<Waiting<T>>,
}

/// The outcome of [`Scheduler::next_batch`].
#[derive(Debug)]
pub(crate) struct Next<T> {
    pub(crate) batch: Option<Batch<T>>,
    /// Expired images to be answered, with their version.
    pub(crate) expired: Vec<(VersionName, Waiting<T>)>,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: BTreeMap<Key, Waiting<T>>,
    /// Host memory that these hold together.
    n_bytes: usize,
    capacity: Capacity,
    /// A bucket.
    max_batch: usize,
    draining: bool,
    /// Seconds of device time used so far, on the fair queue's clock.
    used: f64,
    /// Refusals by estimate since the last batch. Each lowers the estimate a little; otherwise a version that was slow
    /// once would be refused for ever and never measured again.
    n_refused: u32,
}

impl<T> Queue<T> {
    fn new(capacity: Capacity, max_batch: usize) -> Self {
        Self { waiting: BTreeMap::new(), n_bytes: 0, capacity, max_batch, draining: false, used: 0.0, n_refused: 0 }
    }

    /// Returns true if one more image of `n_bytes` may wait.
    fn has_room(&self, n_bytes: usize) -> bool {
        let fits = self.waiting.is_empty() || self.n_bytes.saturating_add(n_bytes) <= self.capacity.n_bytes;
        fits && self.waiting.len() < self.capacity.n_images
    }

    fn insert(&mut self, key: Key, waiting: Waiting<T>) {
        self.n_bytes += waiting.n_bytes;
        self.waiting.insert(key, waiting);
    }

    fn remove(&mut self, key: &Key) -> Option<Waiting<T>> {
        let waiting = self.waiting.remove(key)?;
        self.n_bytes -= waiting.n_bytes;
        Some(waiting)
    }

    fn pop_first(&mut self) -> Option<Waiting<T>> {
        let (_, waiting) = self.waiting.pop_first()?;
        self.n_bytes -= waiting.n_bytes;
        Some(waiting)
    }

    /// Empties the queue.
    fn take_all(&mut self) -> impl Iterator<Item = Waiting<T>> + use<T> {
        self.n_bytes = 0;
        std::mem::take(&mut self.waiting).into_values()
    }

    /// Counts the images before this key. Counts from the end, because most arrivals are due after those that wait.
    fn n_before(&self, key: Key) -> usize {
        self.waiting.len() - self.waiting.range(key..).count()
    }

    /// Removes the images due by `now`.
    fn take_expired(&mut self, now: Instant) -> Vec<Waiting<T>> {
        let late = self.waiting.extract_if(.., |key, _| key.due <= Due::At(now));
        let late: Vec<_> = late.map(|(_, waiting)| waiting).collect();
        self.n_bytes -= late.iter().map(|waiting| waiting.n_bytes).sum::<usize>();
        late
    }
}

#[derive(Debug)]
struct InFlight {
    version: VersionName,
    expected_end: Instant,
}

/// The queues of one device.
#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    queues: BTreeMap<VersionName, Queue<T>>,
    latencies: LatencyTable,
    in_flight: Option<InFlight>,
    n_arrivals: u64,
    /// The fair queue's clock: the `used` of the last version served, before it was served.
    clock: f64,
}

impl<T> Scheduler<T> {
    pub(crate) fn new() -> Self {
        let (queues, latencies) = (BTreeMap::new(), LatencyTable::default());
        Self { queues, latencies, in_flight: None, n_arrivals: 0, clock: 0.0 }
    }

    /// Opens a version's queue for at most `capacity`; batches hold at most `max_batch`, rounded down to a bucket. An
    /// existing queue is reopened with its images.
    pub(crate) fn add_version(&mut self, version: &VersionName, capacity: Capacity, max_batch: usize) {
        let max_batch = bucket_within(max_batch);
        let queue = self.queues.entry(version.clone()).or_insert_with(|| Queue::new(capacity, max_batch));
        (queue.capacity, queue.max_batch, queue.draining) = (capacity, max_batch, false);
    }

    /// Refuses new images for the version; queued ones are served.
    pub(crate) fn drain_version(&mut self, version: &VersionName) {
        if let Some(queue) = self.queues.get_mut(version) {
            queue.draining = true;
        }
    }

    /// Closes the version's queue and returns its images.
    pub(crate) fn remove_version(&mut self, version: &VersionName) -> Vec<Waiting<T>> {
        self.latencies.forget(version);
        self.queues.remove(version).map_or_else(Vec::new, |mut queue| queue.take_all().collect())
    }

    /// Returns true if no image of the version waits or runs.
    pub(crate) fn is_idle(&self, version: &VersionName) -> bool {
        self.n_waiting(version) == 0 && self.in_flight.as_ref().is_none_or(|f| f.version != *version)
    }

    /// The number of the version's images that wait.
    pub(crate) fn n_waiting(&self, version: &VersionName) -> usize {
        self.queues.get(version).map_or(0, |queue| queue.waiting.len())
    }

    /// Returns true if no image waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.waiting.is_empty())
    }

    /// Empties every queue and returns the images with their versions.
    pub(crate) fn take_all(&mut self) -> Vec<(VersionName, Waiting<T>)> {
        let take = |(version, queue): (&VersionName, &mut Queue<T>)| {
            let version = version.clone();
            queue.take_all().map(move |waiting| (version.clone(), waiting))
        };
        self.queues.iter_mut().flat_map(take).collect()
    }

    /// Queues an image, or refuses it at once.
    ///
    /// # Errors
    /// [`ServeError::NotLoaded`], [`ServeError::Overloaded`], [`ServeError::DeadlineExceeded`] when the deadline has
    /// passed, [`ServeError::DeadlineUnmeetable`] when the measured times exceed it.
    pub(crate) fn enqueue(
        &mut self,
        version: &VersionName,
        arrival: Arrival<T>,
        now: Instant,
    ) -> Result<Ticket, ServeError> {
        let Arrival { priority, deadline, n_bytes, payload } = arrival;
        let Some(queue) = self.queues.get(version).filter(|queue| !queue.draining) else {
            return Err(ServeError::NotLoaded { version: version.clone() });
        };
        let key = Key { priority, due: deadline.map_or(Due::Never, Due::At), arrival: self.n_arrivals };
        let n_waiting = queue.waiting.len();
        if let Some(deadline) = deadline {
            if deadline <= now {
                return Err(ServeError::DeadlineExceeded { stage: version.clone().into() });
            }
            let left = deadline - now;
            let needed = self.expected(version, queue, key, now);
            let trusted = needed.map(|needed| needed.mul_f64(0.9f64.powi(queue.n_refused.min(200) as i32)));
            if let (Some(needed), true) = (needed, trusted > Some(left)) {
                if let Some(queue) = self.queues.get_mut(version) {
                    queue.n_refused = queue.n_refused.saturating_add(1);
                }
                return Err(ServeError::DeadlineUnmeetable { version: version.clone(), needed, left });
            }
        }
        if !queue.has_room(n_bytes) {
            let retry_after = self.until_a_place(version, queue, now);
            return Err(ServeError::Overloaded { stage: version.clone().into(), n_waiting, retry_after });
        }
        self.n_arrivals += 1;
        let clock = self.clock;
        if let Some(queue) = self.queues.get_mut(version) {
            if n_waiting == 0 {
                // A version earns no credit for idle time.
                queue.used = queue.used.max(clock);
            }
            queue.insert(key, Waiting { since: now, deadline, n_bytes, payload });
        }
        Ok(Ticket { version: version.clone(), key })
    }

    /// Removes an image from its queue; none if it has left already.
    pub(crate) fn cancel(&mut self, ticket: &Ticket) -> Option<Waiting<T>> {
        self.queues.get_mut(&ticket.version)?.remove(&ticket.key)
    }

    /// Forms the next batch for a free device from the images that wait now.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Next<T> {
        let mut expired = Vec::new();
        for (version, queue) in &mut self.queues {
            expired.extend(queue.take_expired(now).into_iter().map(|waiting| (version.clone(), waiting)));
        }
        Next { batch: self.form_batch(now), expired }
    }

    fn form_batch(&mut self, now: Instant) -> Option<Batch<T>> {
        let foremost = |queue: &Queue<T>| queue.waiting.first_key_value().map(|(key, _)| key.priority);
        let (version, _) = self
            .queues
            .iter()
            .filter_map(|(version, queue)| Some((version, (foremost(queue)?, queue.used))))
            .min_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
        let version = version.clone();
        let n = self.batch_size(&version, self.queues.get(&version)?, now);
        let expected = self.latencies.expected(&version, bucket_for(n));
        let queue = self.queues.get_mut(&version)?;
        self.clock = queue.used;
        // Before the first measurement any unit will do.
        queue.used += expected.map_or(n as f64 * 0.01, |e| e.as_secs_f64());
        let entries = std::iter::from_fn(|| queue.pop_first()).take(n).collect();
        self.in_flight = Some(InFlight { version: version.clone(), expected_end: now + expected.unwrap_or_default() });
        Some(Batch { version, entries })
    }

    /// Chooses how many images to take: the bucket with the most images per second among those in time for the tightest
    /// deadline taken, or among all when none is. A bucket may be filled in part, if that pays.
    fn batch_size(&self, version: &VersionName, queue: &Queue<T>, now: Instant) -> usize {
        let n_waiting = queue.waiting.len();
        let mut best = (false, 0.0, 1);
        for bucket in BUCKETS.into_iter().filter(|&b| b <= queue.max_batch) {
            let n = bucket.min(n_waiting);
            let Some(latency) = self.latencies.expected(version, bucket) else {
                // Without measurements, take the largest bucket that is full.
                best.2 = if bucket <= n_waiting { bucket } else { best.2 };
                continue;
            };
            let tightest = queue.waiting.keys().take(n).map(|key| key.due).min();
            let in_time = tightest.is_none_or(|due| due >= Due::At(now + latency));
            let rate = n as f64 / latency.as_secs_f64().max(1e-9);
            if (in_time, rate) >= (best.0, best.1) {
                best = (in_time, rate, n);
            }
            if bucket >= n_waiting {
                break;
            }
        }
        best.2
    }

    /// Records how long the device took for `n_images` of the version.
    pub(crate) fn record(&mut self, version: &VersionName, n_images: usize, took: Duration) {
        self.latencies.record(version, bucket_for(n_images), took);
        if let Some(queue) = self.queues.get_mut(version) {
            queue.n_refused = 0;
        }
    }

    /// Marks the device as free: the batch in flight is done.
    pub(crate) fn finished(&mut self) {
        self.in_flight = None;
    }

    /// Lowers the version's largest batch when the device had no memory for more.
    pub(crate) fn limit_batch(&mut self, version: &VersionName, max_batch: usize) {
        if let Some(queue) = self.queues.get_mut(version) {
            queue.max_batch = queue.max_batch.min(bucket_within(max_batch));
        }
    }

    /// Expected time until an image with this key is answered: the rest of the batch in flight, the images before it in
    /// its own queue, and the batches of other versions. None without measurements.
    fn expected(&self, version: &VersionName, queue: &Queue<T>, key: Key, now: Instant) -> Option<Duration> {
        let n = queue.n_before(key) + 1;
        let own = self.work(version, queue, n)?;
        Some(self.busy(now) + own + self.time_of_others(version, key.priority, n.div_ceil(queue.max_batch)))
    }

    /// Expected time until the next batch leaves the queue.
    fn until_a_place(&self, version: &VersionName, queue: &Queue<T>, now: Instant) -> Duration {
        let next = self.work(version, queue, queue.max_batch.min(queue.waiting.len())).unwrap_or_default();
        let wait = self.busy(now) + self.time_of_others(version, Priority::Low, 1) + next;
        wait.clamp(Duration::from_millis(10), Duration::from_secs(30))
    }

    fn busy(&self, now: Instant) -> Duration {
        self.in_flight.as_ref().map_or(Duration::ZERO, |f| f.expected_end.saturating_duration_since(now))
    }

    /// Expected device time of `n` images of one version.
    fn work(&self, version: &VersionName, queue: &Queue<T>, n: usize) -> Option<Duration> {
        let full = self.latencies.expected(version, queue.max_batch)? * u32::try_from(n / queue.max_batch).ok()?;
        match n % queue.max_batch {
            0 => Some(full),
            rest => Some(full + self.latencies.expected(version, bucket_for(rest))?),
        }
    }

    /// Expected device time of other versions in `n_rounds` rounds, with one batch of each per round.
    fn time_of_others(&self, version: &VersionName, priority: Priority, n_rounds: usize) -> Duration {
        self.queues
            .iter()
            .filter(|(other, queue)| {
                *other != version && queue.waiting.first_key_value().is_some_and(|(key, _)| key.priority <= priority)
            })
            .filter_map(|(other, queue)| {
                self.work(other, queue, queue.waiting.len().min(queue.max_batch.saturating_mul(n_rounds)))
            })
            .sum()
    }
}

#[cfg(test)]
mod tests;
