//! Both ends of the training process.
//!
//! Owns the child's work on a job (`worker`), its low priority (`priority`), the pipe (`frames`), and the server's side
//! (`launcher`), which starts, supervises and ends the child. Knows no store and no record of a run.

mod frames;
mod launcher;
mod priority;
mod worker;

pub(crate) use launcher::{Launcher, ProcessLauncher, RunningWorker};
pub(crate) use worker::main as worker_main;
