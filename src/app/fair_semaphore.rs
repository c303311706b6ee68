//! A semaphore whose permits go to callers in round-robin order.
//!
//! An ordinary semaphore serves whoever waits longest, so one caller with a hundred requests makes all others wait for a
//! hundred. Here a released permit goes to the next caller, whatever number of requests each has waiting. A caller that is
//! alone may have all permits.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Permits for callers of type `K`.
#[derive(Clone)]
pub(super) struct FairSemaphore<K: PartialEq>(Arc<Mutex<State<K>>>);

struct State<K: PartialEq> {
    n_free: usize,
    /// Waiting callers in the order in which they are served, each with its requests in order.
    waiting: VecDeque<(K, VecDeque<oneshot::Sender<Permit<K>>>)>,
}

/// A permit, which is released when it is dropped.
pub(super) struct Permit<K: PartialEq>(Weak<Mutex<State<K>>>);

impl<K: Clone + PartialEq> FairSemaphore<K> {
    /// Creates `n_permits` free permits.
    #[must_use]
    pub(super) fn new(n_permits: usize) -> Self {
        Self(Arc::new(Mutex::new(State { n_free: n_permits, waiting: VecDeque::new() })))
    }

    /// Waits for a permit.
    pub(super) async fn acquire(&self, caller: K) -> Permit<K> {
        loop {
            let granted = {
                let mut state = self.0.lock();
                if state.n_free > 0 {
                    state.n_free -= 1;
                    return Permit(Arc::downgrade(&self.0));
                }
                let (grant, granted) = oneshot::channel();
                match state.waiting.iter_mut().find(|(waiting, _)| *waiting == caller) {
                    Some((_, requests)) => requests.push_back(grant),
                    None => state.waiting.push_back((caller.clone(), VecDeque::from([grant]))),
                }
                granted
            };
            // No grant is dropped while this call holds the semaphore.
            if let Ok(permit) = granted.await {
                return permit;
            }
        }
    }
}

impl<K: PartialEq> Drop for Permit<K> {
    fn drop(&mut self) {
        let Some(state) = self.0.upgrade() else { return };
        let mut state = state.lock();
        while let Some((caller, mut requests)) = state.waiting.pop_front() {
            let mut is_given = false;
            while let Some(grant) = requests.pop_front() {
                match grant.send(Permit(Weak::clone(&self.0))) {
                    Ok(()) => {
                        is_given = true;
                        break;
                    }
                    // This request was cancelled, so the next one gets the permit.
                    Err(mut left) => left.0 = Weak::new(),
                }
            }
            if !requests.is_empty() {
                state.waiting.push_back((caller, requests));
            }
            if is_given {
                return;
            }
        }
        state.n_free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_with_many_requests_does_not_keep_others_waiting() {
        let semaphore = Arc::new(FairSemaphore::new(2));
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = [semaphore.acquire("greedy").await, semaphore.acquire("greedy").await];
        let mut tasks = Vec::new();
        for caller in ["greedy", "greedy", "greedy", "greedy", "modest", "other"] {
            let (semaphore, order) = (Arc::clone(&semaphore), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _permit = semaphore.acquire(caller).await;
                order.lock().push(caller);
            }));
            // Each waits before the next comes.
            tokio::task::yield_now().await;
        }
        let [first, second] = held;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), ["greedy", "modest", "other", "greedy", "greedy", "greedy"]);
        drop(second);
        assert_eq!(semaphore.0.lock().n_free, 2);
    }

    #[tokio::test]
    async fn a_cancelled_request_keeps_no_permit() {
        let semaphore = Arc::new(FairSemaphore::new(1));
        let held = semaphore.acquire(1).await;
        let leaves = {
            let semaphore = Arc::clone(&semaphore);
            tokio::spawn(async move { drop(semaphore.acquire(2).await) })
        };
        tokio::task::yield_now().await;
        leaves.abort();
        let _ = leaves.await;
        drop(held);
        assert_eq!(semaphore.0.lock().n_free, 1);
        // One is cancelled after it was granted the permit and before it notices.
        let held = semaphore.acquire(1).await;
        let mut waits = Box::pin(semaphore.acquire(3));
        assert!(futures::poll!(&mut waits).is_pending());
        drop(held);
        assert_eq!(semaphore.0.lock().n_free, 0);
        drop(waits);
        assert_eq!(semaphore.0.lock().n_free, 1);
    }
}
