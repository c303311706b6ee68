//! Training: recipes, data, and the worker process.
//!
//! Two processes share this module. The server checks a request ([`Recipe`], [`DataSource`], [`Roots`]) and starts a
//! child process of the same binary ([`Launcher`]). The child ([`worker_main`]) reads the data ([`data`]), trains and
//! reports over its pipes. If the child crashes, hangs or runs out of memory, only its run fails. Knows no transport,
//! no store and no other domain.
//!
//! Each of the four folders depends only on those before it: `request` owns requests, `data` the input, `learn` the
//! training itself, and `process` the child and its pipes.

mod data;
mod error;
mod learn;
mod process;
mod request;

pub(crate) use error::TrainingError;
pub(crate) use process::{Launcher, ProcessLauncher, RunningWorker, worker_main};
pub(crate) use request::{DataSource, Head, Recipe, Roots};

/// Converts a count to the messages' type; a count beyond its range becomes its maximum.
fn count(n: impl TryInto<i32>) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}
