//! Training: recipes, data, the worker process and what it learns.
//!
//! Two sides share this module. The server's side checks a request ([`Recipe`], [`Source`], [`Roots`]) and starts a
//! child process of the same binary ([`Launcher`]); the child reads the data ([`Dataset`], [`Loader`]), trains and
//! reports over its pipes ([`frames`]). A crash, an out-of-memory or a hang of the child is a failed run and nothing
//! more. Knows no transport, no store and no other domain.
//!
//! Read next: [`recipe`] for what can be asked, [`dataset`] for what is read, [`worker`] for what the child does, and
//! [`launcher`] for how it lives.

pub mod augment;
pub mod calibrate;
pub mod dataset;
pub mod error;
pub mod evaluate;
pub mod frames;
pub mod launcher;
pub mod loader;
pub mod priority;
pub mod recipe;
pub mod roots;
pub mod schedule;
pub mod source;
pub mod worker;

mod csv_table;
mod fit;
mod image_file;
mod rejections;
mod split;
mod utkface;

pub use dataset::Dataset;
pub use error::TrainingError;
pub use launcher::{Launcher, ProcessLauncher, RunningWorker, WorkerExit};
pub use loader::{ImageSet, LabelledBatch, Loader};
pub use recipe::{Head, Recipe, Stage, Target, WarmStart, architecture, architecture_to_proto, network_spec};
pub use roots::Roots;
pub use source::Source;
pub use split::{ImageDigest, Split};
