//! The server's side of a training process: started, listened to, stopped, and never outlived.
//!
//! [`ProcessLauncher`] runs the program with the job on its standard input and [`WorkerEvent`]s on its standard output
//! (see [`super::frames`]). One thread supervises each process: it starts it (Linux ties the parent-death signal to
//! the thread that forked, so that thread must live as long as the child), hands on what the process says, and turns
//! whatever its end is into a [`WorkerExit`]. The process gets a group of its own, so that a Ctrl-C in the terminal
//! reaches the server alone and a kill reaches its children too, but stays in the session, where its low priority
//! counts (see [`super::priority`]).

mod judge;
mod running;
mod supervisor;

use std::{ffi::OsString, path::PathBuf, process::Command, time::Duration};

pub(crate) use running::RunningWorker;
use tokio::sync::{mpsc, oneshot};

use crate::{proto::worker::Job, training::TrainingError};

/// Events that wait to be taken before the process is made to wait.
const MAX_WAITING_EVENTS: usize = 64;

/// Starts training processes.
pub(crate) trait Launcher: Send + Sync + 'static {
    /// Starts one on a job. Returns as soon as the process exists; blocks for that long.
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
    /// Set in its environment, over what it inherits.
    pub env: Vec<(OsString, OsString)>,
    /// How long it may take to stop once asked to, or to end once it has said its last word; killed then.
    pub stop_grace: Duration,
}

impl ProcessLauncher {
    /// `program worker`, with ten seconds to stop.
    #[must_use]
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, args: vec!["worker".into()], env: Vec::new(), stop_grace: Duration::from_secs(10) }
    }

    /// This very binary.
    ///
    /// # Errors
    /// [`TrainingError::Launch`] when the system does not say where it is.
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
