//! The scheduler's rules, under a clock that the test sets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::serving::testing::version;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An image of ten bytes.
fn arrival<T>(priority: Priority, deadline: Option<Instant>, payload: T) -> Arrival<T> {
    Arrival { priority, deadline, n_bytes: 10, payload }
}

struct Bench {
    scheduler: Scheduler<u32>,
    start: Instant,
}

impl Bench {
    fn new(versions: &[&str], n_images: usize, max_batch: usize) -> Self {
        let mut scheduler = Scheduler::new();
        let capacity = Capacity { n_images, n_bytes: 100_000 };
        versions.iter().for_each(|v| scheduler.add_version(&version(v), capacity, max_batch));
        Self { scheduler, start: Instant::now() }
    }

    fn measured(&mut self, name: &str, ms_by_bucket: &[(usize, u64)]) {
        ms_by_bucket.iter().for_each(|&(n, took)| self.scheduler.record(&version(name), n, ms(took)));
    }

    fn put(&mut self, name: &str, due_ms: Option<u64>, payload: u32) -> Result<Ticket, ServeError> {
        let deadline = due_ms.map(|due| self.start + ms(due));
        self.scheduler.enqueue(&version(name), arrival(Priority::Normal, deadline, payload), self.start)
    }

    fn put_bytes(&mut self, n_bytes: usize, payload: u32) -> Result<(), ServeError> {
        let arrival = Arrival { n_bytes, ..arrival(Priority::Normal, None, payload) };
        self.scheduler.enqueue(&version("v"), arrival, self.start).map(drop)
    }

    fn next(&mut self, at_ms: u64) -> (Vec<u32>, Vec<u32>) {
        let next = self.scheduler.next_batch(self.start + ms(at_ms));
        let batch = next.batch.map_or_else(Vec::new, |b| b.entries.into_iter().map(|w| w.payload).collect());
        (batch, next.expired.into_iter().map(|(_, w)| w.payload).collect())
    }
}

#[test]
fn the_earlier_deadline_goes_first_and_none_goes_last() {
    let mut b = Bench::new(&["v"], 10, 1);
    for (due, payload) in [(None, 0), (Some(900), 1), (Some(300), 2), (None, 3), (Some(500), 4), (Some(300), 5)] {
        b.put("v", due, payload).unwrap();
    }
    let order: Vec<_> = (0..6).flat_map(|_| b.next(0).0).collect();
    assert_eq!(order, [2, 5, 4, 1, 0, 3]);
}

#[test]
fn priorities_go_before_deadlines() {
    let mut b = Bench::new(&["v"], 10, 1);
    let due = Some(b.start + ms(100));
    b.scheduler.enqueue(&version("v"), arrival(Priority::Low, due, 0), b.start).unwrap();
    b.scheduler.enqueue(&version("v"), arrival(Priority::Normal, None, 1), b.start).unwrap();
    b.scheduler.enqueue(&version("v"), arrival(Priority::High, None, 2), b.start).unwrap();
    assert_eq!((0..3).flat_map(|_| b.next(0).0).collect::<Vec<_>>(), [2, 1, 0]);
}

#[test]
fn what_waits_goes_together_in_the_bucket_that_pays() {
    let all = |n: u32| (0..n).collect::<Vec<_>>();
    let filled = |n: u32, measured: &[(usize, u64)]| {
        let mut b = Bench::new(&["v"], 100, 32);
        b.measured("v", measured);
        all(n).into_iter().for_each(|i| drop(b.put("v", None, i).unwrap()));
        b.next(0).0
    };
    // Unmeasured: only full buckets.
    assert_eq!(filled(7, &[]), all(4));
    assert_eq!(filled(50, &[]), all(32));
    // Measured: seven in a bucket of eight are cheaper than four, two and one.
    let even = [(1, 10), (2, 12), (4, 16), (8, 24), (16, 40), (32, 72)];
    assert_eq!(filled(7, &even), all(7));
    // Five in a bucket of eight are not, when time is in proportion to the bucket.
    let proportional = [(1, 10), (2, 20), (4, 40), (8, 80), (16, 160), (32, 320)];
    assert_eq!(filled(5, &proportional), all(4));
    // A device that is slower with large batches gets small ones.
    assert_eq!(filled(40, &[(1, 10), (2, 18), (4, 34), (8, 100), (16, 400), (32, 900)]), all(4));
}

#[test]
fn a_tight_deadline_makes_the_batch_small() {
    let mut b = Bench::new(&["v"], 100, 32);
    b.measured("v", &[(1, 10), (2, 14), (4, 22), (8, 38), (16, 70), (32, 134)]);
    b.put("v", Some(30), 0).unwrap();
    (1..20).for_each(|i| drop(b.put("v", None, i).unwrap()));
    assert_eq!(b.next(0).0, [0, 1, 2, 3]);
    b.scheduler.finished();
    assert_eq!(b.next(22).0.len(), 16);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let mut b = Bench::new(&["v"], 3, 2);
    b.measured("v", &[(1, 100), (2, 150)]);
    (0..3).for_each(|i| drop(b.put("v", None, i).unwrap()));
    let Err(ServeError::Overloaded { n_waiting: 3, retry_after, .. }) = b.put("v", None, 3) else { panic!() };
    assert!(retry_after.abs_diff(ms(150)) < ms(1), "{retry_after:?}");
    assert_eq!(b.next(0).0, [0, 1]);
    b.put("v", None, 4).unwrap();
    b.put("v", None, 5).unwrap();
    // With a batch of 150 ms in flight.
    let Err(ServeError::Overloaded { retry_after, .. }) = b.put("v", None, 6) else { panic!() };
    assert!(retry_after.abs_diff(ms(300)) < ms(1), "{retry_after:?}");
}

#[test]
fn large_images_fill_a_queue_by_their_bytes() {
    let mut b = Bench::new(&["v"], 100, 8);
    // Larger than the queue's limit: it may wait alone.
    b.put_bytes(500_000, 0).unwrap();
    assert!(matches!(b.put_bytes(1, 1), Err(ServeError::Overloaded { n_waiting: 1, .. })));
    assert_eq!(b.next(0).0, [0]);
    (0..2).for_each(|i| b.put_bytes(50_000, i).unwrap());
    assert!(matches!(b.put_bytes(1, 2), Err(ServeError::Overloaded { n_waiting: 2, .. })));
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    let mut b = Bench::new(&["v", "w"], 100, 2);
    b.measured("v", &[(1, 100), (2, 150)]);
    b.measured("w", &[(1, 400)]);
    assert!(matches!(b.put("v", Some(99), 0), Err(ServeError::DeadlineUnmeetable { needed, left, .. })
        if needed.abs_diff(ms(100)) < ms(1) && left == ms(99)));
    b.scheduler.record(&version("v"), 1, ms(100));
    assert!(b.put("v", Some(101), 1).is_ok());
    // Behind the first, in one batch with it.
    assert!(matches!(b.put("v", Some(140), 2), Err(ServeError::DeadlineUnmeetable { .. })));
    b.scheduler.record(&version("v"), 1, ms(100));
    // Before the first, alone.
    assert!(b.put("v", Some(100), 3).is_ok());
    // Another version gets a batch, too.
    b.put("w", None, 9).unwrap();
    assert!(matches!(b.put("v", Some(600), 4), Err(ServeError::DeadlineUnmeetable { .. })));
    assert!(matches!(b.put("v", Some(0), 5), Err(ServeError::DeadlineExceeded { .. })));
    assert!(matches!(b.put("x", None, 6), Err(ServeError::NotLoaded { .. })));
}

#[test]
fn a_version_that_was_slow_once_is_tried_again() {
    let mut b = Bench::new(&["v"], 100, 1);
    b.measured("v", &[(1, 5000)]);
    let refused = (0..100).take_while(|&i| b.put("v", Some(1000), i).is_err()).count();
    assert!((5..50).contains(&refused), "{refused}");
    assert_eq!(b.next(0).0, [refused as u32]);
}

#[test]
fn expired_and_cancelled_images_never_reach_the_device() {
    let mut b = Bench::new(&["v"], 100, 8);
    b.put("v", Some(50), 0).unwrap();
    b.put("v", Some(60), 1).unwrap();
    let gone = b.put("v", Some(400), 2).unwrap();
    b.put("v", Some(400), 3).unwrap();
    assert_eq!(b.scheduler.cancel(&gone).map(|w| w.payload), Some(2));
    assert!(b.scheduler.cancel(&gone).is_none());
    assert_eq!(b.next(60), (vec![3], vec![0, 1]));
    assert_eq!(b.next(60), (vec![], vec![]));
}

#[test]
fn a_busy_version_does_not_starve_a_quiet_one() {
    let mut b = Bench::new(&["busy", "quiet"], 1000, 8);
    b.measured("busy", &[(8, 80)]);
    b.measured("quiet", &[(1, 10)]);
    (0..400).for_each(|i| drop(b.put("busy", None, i).unwrap()));
    (0..10).for_each(|_| drop(b.next(0)));
    // It was idle until now, and gets one batch at once, but not ten in a row.
    (1000..1040).for_each(|i| drop(b.put("quiet", None, i).unwrap()));
    let batches: Vec<bool> = (0..8).map(|_| b.next(0).0[0] >= 1000).collect();
    assert!(batches[..2].contains(&true), "{batches:?}");
    assert!(batches.iter().filter(|&&quiet| quiet).count() <= 5, "{batches:?}");
}

#[test]
fn draining_serves_what_waits_and_takes_nothing_more() {
    let mut b = Bench::new(&["v"], 10, 8);
    b.put("v", None, 0).unwrap();
    b.scheduler.drain_version(&version("v"));
    assert!(matches!(b.put("v", None, 1), Err(ServeError::NotLoaded { .. })));
    assert!(!b.scheduler.is_idle(&version("v")));
    assert_eq!(b.next(0).0, [0]);
    assert!(!b.scheduler.is_idle(&version("v")), "it runs");
    b.scheduler.finished();
    assert!(b.scheduler.is_idle(&version("v")));
}

#[test]
fn memory_limits_the_batch() {
    let mut b = Bench::new(&["v"], 100, 32);
    (0..40).for_each(|i| drop(b.put("v", None, i).unwrap()));
    b.scheduler.limit_batch(&version("v"), 7);
    assert_eq!(b.next(0).0.len(), 4);
}

#[derive(Clone, Debug)]
enum Step {
    Put { version: usize, priority: Priority, due_ms: Option<u64> },
    Cancel(prop::sample::Index),
    Next,
    Finish { took_ms: u64 },
    Wait { ms: u64 },
    Drain { version: usize },
    Remove { version: usize },
    Add { version: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low]);
    let step = prop_oneof![
        8 => (0..3usize, priority, prop::option::of(1..300u64))
            .prop_map(|(version, priority, due_ms)| Step::Put { version, priority, due_ms }),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        3 => Just(Step::Next),
        3 => (1..120u64).prop_map(|took_ms| Step::Finish { took_ms }),
        2 => (0..80u64).prop_map(|ms| Step::Wait { ms }),
        1 => (0..3usize).prop_map(|version| Step::Drain { version }),
        1 => (0..3usize).prop_map(|version| Step::Remove { version }),
        1 => (0..3usize).prop_map(|version| Step::Add { version }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// In any order of events, the bound holds and each image leaves once, in order, and never too late.
    #[test]
    fn nothing_is_lost_or_late(
        steps in steps(),
        n_images in 1..12usize,
        n_bytes in 100..2000usize,
        max_batch in 1..40usize,
    ) {
        let capacity = Capacity { n_images, n_bytes };
        let bytes_of = |id: u32| id as usize % 7 * 100;
        let names = ["a", "b", "c"].map(version);
        let mut scheduler = Scheduler::new();
        names.iter().for_each(|name| scheduler.add_version(name, capacity, max_batch));
        let start = Instant::now();
        let mut now = start;
        // Accepted and not yet out, by id.
        let mut inside: BTreeMap<u32, (Ticket, usize)> = BTreeMap::new();
        let mut issued = 0;
        let mut running: Option<(VersionName, usize)> = None;
        for step in steps {
            match step {
                Step::Put { version, priority, due_ms } => {
                    let id = issued;
                    issued += 1;
                    let before: Vec<u32> = inside.iter().filter(|(_, (_, v))| *v == version).map(|(id, _)| *id).collect();
                    let bytes = before.iter().chain([&id]).map(|id| bytes_of(*id)).sum::<usize>();
                    let has_room = before.len() < n_images && (before.is_empty() || bytes <= n_bytes);
                    let deadline = due_ms.map(|due| now + ms(due));
                    let arrival = Arrival { priority, deadline, n_bytes: bytes_of(id), payload: id };
                    match scheduler.enqueue(&names[version], arrival, now) {
                        Ok(ticket) => {
                            prop_assert!(has_room);
                            inside.insert(id, (ticket, version));
                        }
                        Err(ServeError::Overloaded { n_waiting, .. }) => {
                            prop_assert!(!has_room);
                            prop_assert_eq!(n_waiting, before.len());
                        }
                        Err(ServeError::DeadlineUnmeetable { .. }) => prop_assert!(due_ms.is_some()),
                        Err(ServeError::NotLoaded { .. }) => {}
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Step::Cancel(index) if !inside.is_empty() => {
                    let id = *inside.keys().nth(index.index(inside.len())).unwrap();
                    let (ticket, _) = inside.remove(&id).unwrap();
                    prop_assert_eq!(scheduler.cancel(&ticket).map(|w| w.payload), Some(id));
                    prop_assert!(scheduler.cancel(&ticket).is_none());
                }
                Step::Cancel(_) => {}
                Step::Next if running.is_none() => {
                    let next = scheduler.next_batch(now);
                    for (_, waiting) in &next.expired {
                        prop_assert!(waiting.deadline.is_some_and(|due| due <= now));
                        prop_assert!(inside.remove(&waiting.payload).is_some());
                    }
                    if let Some(batch) = next.batch {
                        prop_assert!(!batch.entries.is_empty() && batch.entries.len() <= max_batch.min(32));
                        let ids: BTreeSet<u32> = batch.entries.iter().map(|w| w.payload).collect();
                        let last = ids.iter().filter_map(|id| Some(inside.get(id)?.0.key)).max().unwrap();
                        for waiting in &batch.entries {
                            prop_assert!(waiting.deadline.is_none_or(|due| due > now));
                            prop_assert!(inside.remove(&waiting.payload).is_some());
                        }
                        for (ticket, version) in inside.values() {
                            prop_assert!(names[*version] != batch.version || ticket.key > last);
                        }
                        running = Some((batch.version, ids.len()));
                    } else {
                        prop_assert!(inside.is_empty());
                    }
                }
                Step::Next => {}
                Step::Finish { took_ms } => {
                    if let Some((version, n)) = running.take() {
                        now += ms(took_ms);
                        scheduler.record(&version, n, ms(took_ms));
                        scheduler.finished();
                    }
                }
                Step::Wait { ms: by } => now += ms(by),
                Step::Drain { version } => scheduler.drain_version(&names[version]),
                Step::Remove { version } => {
                    for waiting in scheduler.remove_version(&names[version]) {
                        prop_assert_eq!(inside.remove(&waiting.payload).map(|(_, v)| v), Some(version));
                    }
                }
                Step::Add { version } => scheduler.add_version(&names[version], capacity, max_batch),
            }
            let waiting: usize = names.iter().map(|name| scheduler.n_waiting(name)).sum();
            prop_assert_eq!(waiting, inside.len());
            prop_assert_eq!(scheduler.is_empty(), inside.is_empty());
        }
        let left: BTreeSet<u32> = scheduler.take_all().into_iter().map(|(_, w)| w.payload).collect();
        prop_assert_eq!(left, inside.into_keys().collect::<BTreeSet<_>>());
    }
}
