//! The process that trains, from both of its ends.
//!
//! Owns what the child does with a job (`worker`), how it steps back behind serving (`priority`), the pipe between the
//! two (`frames`), and the server's side of it (`launcher`): the start, the supervision and the end of the child. Knows
//! no store and no record of a run.

mod frames;
mod launcher;
mod priority;
mod worker;

pub(crate) use launcher::{Launcher, ProcessLauncher, RunningWorker};
pub(crate) use worker::main as worker_main;
