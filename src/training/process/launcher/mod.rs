//! The server's side of a training process: starts it, reads its events, stops it, and never leaves it running.
//!
//! [`ProcessLauncher`] runs the program with the job on its standard input and
//! [`worker::WorkerEvent`](crate::proto::worker::WorkerEvent)s on its standard output (see [`super::frames`]). One
//! thread supervises each process: it starts the process, forwards its events, and converts its end into a
//! [`running::WorkerExit`]. Linux ties the parent-death signal to the thread that forked, so that thread must live as
//! long as the child. The process gets a group of its own, so that a Ctrl-C in the terminal reaches only the server,
//! and a kill also reaches the child's children. It stays in the session, where its low priority counts (see
//! [`super::priority`]).

mod judge;
mod running;
mod supervisor;

use std::{ffi::OsString, path::PathBuf, process::Command, time::Duration};

pub(crate) use running::RunningWorker;
use tokio::sync::{mpsc, oneshot};

use crate::{proto::worker::Job, training::TrainingError};

/// Events that may wait to be received; beyond them the process is blocked.
const MAX_WAITING_EVENTS: usize = 64;

/// Starts training processes.
pub(crate) trait Launcher: Send + Sync + 'static {
    /// Starts a process on a job. Blocks until the process exists.
    ///
    /// # Errors
    /// [`TrainingError::Launch`] when it cannot be started.
    fn start(&self, job: Job) -> Result<RunningWorker, TrainingError>;
}

/// Starts a program as the training process.
#[derive(Clone, Debug)]
pub(crate) struct ProcessLauncher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables set in its environment, over the inherited ones.
    pub env: Vec<(OsString, OsString)>,
    /// Time to stop after a cancellation, or to exit after the final event; then it is killed.
    pub stop_grace: Duration,
}

impl ProcessLauncher {
    /// Runs `program worker`, with ten seconds to stop.
    #[must_use]
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, args: vec!["worker".into()], env: Vec::new(), stop_grace: Duration::from_secs(10) }
    }

    /// Runs this very binary.
    ///
    /// # Errors
    /// [`TrainingError::Launch`] when the system does not report its path.
    pub(crate) fn this_binary() -> Result<Self, TrainingError> {
        match std::env::current_exe() {
            Ok(program) => Ok(Self::new(program)),
            Err(source) => Err(TrainingError::Launch { program: PathBuf::from("visage"), source }),
        }
    }
}

impl Launcher for ProcessLauncher {
    fn start(&self, job: Job) -> Result<RunningWorker, TrainingError> {
        let (events_in, events) = mpsc::channel(MAX_WAITING_EVENTS);
        let (exit_in, exit) = oneshot::channel();
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(key, value)| (key, value)));
        let control = supervisor::start(command, self.stop_grace, job, events_in, exit_in)
            .map_err(|source| TrainingError::Launch { program: self.program.clone(), source })?;
        Ok(RunningWorker::new(events, control, exit))
    }
}

#[cfg(test)]
mod tests;
