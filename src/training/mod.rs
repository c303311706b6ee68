//! Training: recipes, data, the worker process and what it learns.
//!
//! Two sides share this module. The server's side checks a request ([`Recipe`], [`Source`], [`Roots`]) and starts a
//! child process of the same binary ([`Launcher`]); the child ([`worker_main`]) reads the data ([`Dataset`],
//! [`Loader`]), trains and reports over its pipes. A crash, an out-of-memory or a hang of the child is a failed run and
//! nothing more. Knows no transport, no store and no other domain.
//!
//! Four folders, each above the ones before it: `asked` owns what a caller can ask for, `data` what is read, `learn`
//! what is done with it, and `process` the child and its pipes.

mod asked;
mod data;
mod error;
mod learn;
mod process;

pub(crate) use asked::{Head, Recipe, Roots, Source};
pub(crate) use error::TrainingError;
pub(crate) use process::{Launcher, ProcessLauncher, RunningWorker, worker_main};

/// A count as the messages carry it; one that is too large for them is their largest.
fn count(n: impl TryInto<i32>) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}
