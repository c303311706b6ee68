//! A training process as its starter sees it: its events, orders to it, and its end.

use std::{fmt, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use crate::proto::worker::{self, WorkerEvent};

/// What can be asked of a training process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerOrder {
    /// Stop soon, and say that you were cancelled.
    Cancel,
    /// End now.
    Kill,
}

/// Gives orders to a training process, from anywhere.
#[derive(Clone)]
pub(crate) struct WorkerControl(Arc<dyn Fn(WorkerOrder) + Send + Sync>);

impl WorkerControl {
    /// Hands orders to `give`, which must not block and ignores those that come too late.
    pub(crate) fn new(give: impl Fn(WorkerOrder) + Send + Sync + 'static) -> Self {
        Self(Arc::new(give))
    }

    /// Asks it to stop. It is killed when it does not in time.
    pub(crate) fn cancel(&self) {
        (self.0)(WorkerOrder::Cancel);
    }

    /// Ends it now.
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
    /// What it says, in order; the last is always its end, in its own words or, where it had none, in those of its
    /// [`WorkerExit`]. A process whose events are not taken is made to wait.
    pub events: mpsc::Receiver<WorkerEvent>,
    control: WorkerControl,
    exit: oneshot::Receiver<WorkerExit>,
    ended: Option<WorkerExit>,
}

impl RunningWorker {
    /// Puts one together, for a launcher of another kind.
    #[must_use]
    pub(crate) fn new(
        events: mpsc::Receiver<WorkerEvent>,
        control: WorkerControl,
        exit: oneshot::Receiver<WorkerExit>,
    ) -> Self {
        Self { events, control, exit, ended: None }
    }

    /// Asks it to stop. It is killed when it does not in time.
    pub(crate) fn cancel(&self) {
        self.control.cancel();
    }

    /// Ends it now.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        self.control.kill();
    }

    /// How it ended, once it has and is reaped. Events that were not taken are lost. May be given up and called again.
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
    /// What it made; or why it made nothing, in its own words or, where it had none, from the way it died.
    pub result: Result<Box<worker::Finished>, worker::Failed>,
    /// The end of what it wrote to standard error, at most 2 KB, for the log.
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
