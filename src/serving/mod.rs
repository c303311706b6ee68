//! From pixels to raw outputs, on time: scheduler, executors, admission.
//!
//! Owns the bounded queues and the threads that own the models. A network is an [`Engine`] here, so that tests can
//! drive the scheduler with a fake one; only `engines` knows libtorch. Knows no transport, no store and no manifest.
//!
//! A photo's path: [`PixelPool`] decodes it. [`ServingPool::run`] puts it in its version's queue (`scheduler`), or
//! refuses it if the times measured by `latency` show that it would be late. The device's thread (`executor`), once
//! free, forms a batch and runs the version's [`Engine`].
//!
//! A version's path: [`ServingPool::load`] makes the device's second thread (`loader`) build the engine, compare it
//! with the version's golden outputs and warm it, while the first thread serves. [`ServingPool::unload`] waits for
//! queued images first. The threads and the handles share `device`, and exchange the messages of `exchange`.

mod device;
mod engine;
mod engines;
mod error;
mod exchange;
mod executor;
mod golden;
mod latency;
mod loader;
mod pixel_pool;
mod pool;
mod scheduler;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests;

use engine::panic_message;
pub(crate) use engine::{Engine, EngineError, EngineLoader, EngineSource, ImageOutput, Input, InputKind};
pub(crate) use engines::TorchEngineLoader;
pub(crate) use error::{ServeError, Stage};
pub(crate) use exchange::{LoadState, Served, ServingSettings};
pub(crate) use pixel_pool::{PixelError, PixelPool, PixelPoolSettings};
pub(crate) use pool::ServingPool;
pub(crate) use scheduler::Priority;
