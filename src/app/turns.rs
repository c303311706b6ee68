//! A limited number of places that callers get by turns.
//!
//! A semaphore serves whoever waits longest, so one caller with a hundred requests makes all others wait for a hundred.
//! Here a place that becomes free goes to the next caller, whatever number of requests each has waiting. A caller alone
//! may have all places.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Places for work of callers of type `K`.
#[derive(Clone)]
pub(super) struct Turns<K: PartialEq>(Arc<Mutex<State<K>>>);

struct State<K: PartialEq> {
    n_free: usize,
    /// Callers that wait, by turns, each with its requests in order.
    waiting: VecDeque<(K, VecDeque<oneshot::Sender<Turn<K>>>)>,
}

/// A place, until it is dropped.
pub(super) struct Turn<K: PartialEq>(Weak<Mutex<State<K>>>);

impl<K: PartialEq> Turns<K> {
    /// Makes free places.
    #[must_use]
    pub(super) fn new(n_places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { n_free: n_places, waiting: VecDeque::new() })))
    }

    /// Waits for a place.
    pub(super) async fn take(&self, caller: K) -> Turn<K> {
        let granted = {
            let mut state = self.0.lock();
            if state.n_free > 0 {
                state.n_free -= 1;
                return Turn(Arc::downgrade(&self.0));
            }
            let (grant, granted) = oneshot::channel();
            match state.waiting.iter_mut().find(|(waiting, _)| *waiting == caller) {
                Some((_, requests)) => requests.push_back(grant),
                None => state.waiting.push_back((caller, VecDeque::from([grant]))),
            }
            granted
        };
        match granted.await {
            Ok(turn) => turn,
            // A grant is dropped only with the places, to which this call holds a reference.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<K: PartialEq> Drop for Turn<K> {
    fn drop(&mut self) {
        let Some(places) = self.0.upgrade() else { return };
        let mut state = places.lock();
        while let Some((caller, mut requests)) = state.waiting.pop_front() {
            let mut is_given = false;
            while let Some(grant) = requests.pop_front() {
                match grant.send(Turn(Weak::clone(&self.0))) {
                    Ok(()) => {
                        is_given = true;
                        break;
                    }
                    // This one has left; its place is the one that is given back here.
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
    async fn a_caller_with_many_requests_lets_others_have_their_turn() {
        let turns = Arc::new(Turns::new(2));
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = [turns.take("greedy").await, turns.take("greedy").await];
        let mut tasks = Vec::new();
        for caller in ["greedy", "greedy", "greedy", "greedy", "modest", "other"] {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(caller).await;
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
        assert_eq!(turns.0.lock().n_free, 2);
    }

    #[tokio::test]
    async fn whoever_leaves_takes_no_place_along() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.take(1).await;
        let leaves = {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { drop(turns.take(2).await) })
        };
        tokio::task::yield_now().await;
        leaves.abort();
        let _ = leaves.await;
        drop(held);
        assert_eq!(turns.0.lock().n_free, 1);
        // One leaves after its turn has come and before it notices.
        let held = turns.take(1).await;
        let mut waits = Box::pin(turns.take(3));
        assert!(futures::poll!(&mut waits).is_pending());
        drop(held);
        assert_eq!(turns.0.lock().n_free, 0);
        drop(waits);
        assert_eq!(turns.0.lock().n_free, 1);
    }
}
