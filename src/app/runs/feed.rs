//! The numbered events of a run for its watchers: stored events first, then live ones.
//!
//! Events between two stored ones (a step's progress) are sent only to current watchers. A slow watcher misses some of
//! those, never the end.

use std::{collections::VecDeque, time::SystemTime};

use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};

use super::run_to_proto;
use crate::proto::{
    store::RunRecord,
    v1::{self, watch_training_run_response::Event as Kind},
};

/// One event of a run.
pub(super) type Event = v1::WatchTrainingRunResponse;

/// The number of events that a slow watcher may lag behind before it misses some.
const BACKLOG: usize = 256;

/// The live events of a run.
pub(super) struct Feed {
    state: Mutex<State>,
    live: broadcast::Sender<Event>,
}

struct State {
    last_sequence: i64,
    progress: Option<v1::Progress>,
}

impl Feed {
    pub(super) fn new(last_sequence: i64) -> Self {
        Self { state: Mutex::new(State { last_sequence, progress: None }), live: broadcast::channel(BACKLOG).0 }
    }

    /// Returns the number of the next event.
    pub(super) fn next_sequence(&self) -> i64 {
        let mut state = self.state.lock();
        state.last_sequence += 1;
        state.last_sequence
    }

    /// Publishes an event to watchers. An event to be stored must be stored first.
    pub(super) fn publish(&self, event: Event) {
        if let Some(Kind::Progress(progress)) = &event.event {
            self.state.lock().progress = Some(progress.clone());
        }
        // It fails only if nobody is watching.
        let _ = self.live.send(event);
    }

    pub(super) fn latest_progress(&self) -> Option<v1::Progress> {
        self.state.lock().progress.clone()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}

/// Makes an event with the current time.
pub(super) fn event(sequence: i64, kind: Kind) -> Event {
    Event { sequence, time: Some(SystemTime::now().into()), event: Some(kind) }
}

/// Makes the event of a run's end.
pub(super) fn ended(record: &RunRecord) -> Kind {
    Kind::Ended(run_to_proto(record))
}

/// The events of a run, in order, each once, until its end.
pub(super) struct Watch {
    kept: VecDeque<Event>,
    live: Option<broadcast::Receiver<Event>>,
    last_sequence: i64,
}

impl Watch {
    pub(super) fn new(kept: Vec<Event>, live: Option<broadcast::Receiver<Event>>, after: i64) -> Self {
        Self { kept: kept.into(), live, last_sequence: after }
    }

    /// Returns the events as a stream.
    pub(super) fn events(self) -> BoxStream<'static, Event> {
        stream::unfold(self, |mut watch| async { watch.next().await.map(|event| (event, watch)) }).boxed()
    }

    /// Returns the next event, or `None` after the end.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.kept.pop_front() {
                Some(event) => event,
                None => match self.live.as_mut()?.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return None,
                },
            };
            if event.sequence <= self.last_sequence {
                continue;
            }
            self.last_sequence = event.sequence;
            if matches!(event.event, Some(Kind::Ended(_))) {
                self.kept.clear();
                self.live = None;
            }
            return Some(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(feed: &Feed, step: i32) -> Event {
        event(feed.next_sequence(), Kind::Progress(v1::Progress { step, ..v1::Progress::default() }))
    }

    fn end(feed: &Feed) -> Event {
        event(feed.next_sequence(), Kind::Ended(v1::TrainingRun::default()))
    }

    #[tokio::test]
    async fn kept_and_live_events_come_once_and_in_order() {
        let feed = Feed::new(0);
        let kept: Vec<_> = (0..3).map(|i| progress(&feed, i)).collect();
        let live = feed.subscribe();
        // The third is stored and also published live, as when it happens while the store is read.
        feed.publish(kept[2].clone());
        feed.publish(progress(&feed, 3));
        feed.publish(end(&feed));
        let mut watch = Watch::new(kept, Some(live), 1);
        let mut seen = Vec::new();
        while let Some(event) = watch.next().await {
            seen.push(event.sequence);
        }
        assert_eq!(seen, [2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_slow_watcher_still_sees_the_end() {
        let feed = Feed::new(0);
        let live = feed.subscribe();
        for i in 0..(2 * BACKLOG as i32) {
            feed.publish(progress(&feed, i));
        }
        feed.publish(end(&feed));
        let mut watch = Watch::new(Vec::new(), Some(live), 0);
        let mut last = None;
        while let Some(event) = watch.next().await {
            last = Some(event);
        }
        assert!(matches!(last.unwrap().event, Some(Kind::Ended(_))));
    }
}
