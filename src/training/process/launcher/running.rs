//! A training process for its starter: its events, its controls, and its end.

use std::{fmt, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use crate::proto::worker::{self, WorkerEvent};

/// A control of a training process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerOrder {
    /// Stop soon, and report the cancellation.
    Cancel,
    /// End now.
    Kill,
}

/// Controls a training process from any thread.
#[derive(Clone)]
pub(crate) struct WorkerControl(Arc<dyn Fn(WorkerOrder) + Send + Sync>);

impl WorkerControl {
    /// Creates a control that passes orders to `give`, which must not block and must ignore orders that come late.
    pub(crate) fn new(give: impl Fn(WorkerOrder) + Send + Sync + 'static) -> Self {
        Self(Arc::new(give))
    }

    /// Cancels the process. It is killed if it does not stop in time.
    pub(crate) fn cancel(&self) {
        (self.0)(WorkerOrder::Cancel);
    }

    /// Kills the process now.
    pub(crate) fn kill(&self) {
        (self.0)(WorkerOrder::Kill);
    }
}

impl fmt::Debug for WorkerControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerControl")
    }
}

/// A training process. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct RunningWorker {
    /// Its events in order. The last is always its end: its own final event, or one made from its [`WorkerExit`]. A
    /// process blocks if its events are not received.
    pub events: mpsc::Receiver<WorkerEvent>,
    control: WorkerControl,
    exit: oneshot::Receiver<WorkerExit>,
    ended: Option<WorkerExit>,
}

impl RunningWorker {
    /// Creates one for another kind of launcher.
    #[must_use]
    pub(crate) fn new(
        events: mpsc::Receiver<WorkerEvent>,
        control: WorkerControl,
        exit: oneshot::Receiver<WorkerExit>,
    ) -> Self {
        Self { events, control, exit, ended: None }
    }

    /// Cancels the process. It is killed if it does not stop in time.
    pub(crate) fn cancel(&self) {
        self.control.cancel();
    }

    /// Kills the process now.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        self.control.kill();
    }

    /// Waits until the process has ended and is reaped, and returns how. Events not received are lost. Cancel-safe: may
    /// be called again.
    pub(crate) async fn wait(&mut self) -> WorkerExit {
        while self.events.recv().await.is_some() {}
        if let Some(exit) = &self.ended {
            return exit.clone();
        }
        let exit = (&mut self.exit).await.unwrap_or_else(|_| WorkerExit {
            result: Err(worker::Failed {
                kind: worker::FailureKind::Internal.into(),
                message: "the thread that supervised the training process panicked".to_owned(),
            }),
            stderr_tail: String::new(),
        });
        self.ended.insert(exit).clone()
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.control.kill();
    }
}

/// How a training process ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerExit {
    /// Its result, or the reason why there is none: its own, or one derived from how it died.
    pub result: Result<Box<worker::Finished>, worker::Failed>,
    /// The end of its standard error, at most 2 KB, for the log.
    pub stderr_tail: String,
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(_) => f.write_str("the training process finished"),
            Err(failed) => f.write_str(&failed.message),
        }
    }
}
