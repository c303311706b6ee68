//! From pixels to raw outputs, on time: scheduler, executors, admission.
//!
//! Owns the bounded queues and the threads that own the models. A network is an [`Engine`] here, so that the scheduler
//! is tested with a fake one; `engines` alone knows libtorch. Knows no transport, no store and no manifest.
//!
//! A photo's way: [`PixelPool`] makes its pixels; [`ServingPool::run`] lets it wait in its version's queue
//! (`scheduler`, which also refuses what cannot be met, by what `latency` has measured); the device's one thread
//! (`executor`) forms a batch when it is free and runs the version's [`Engine`]. A version's way: [`ServingPool::load`]
//! has the device's second thread (`loader`) build the engine, compare it with the version's golden outputs and warm it,
//! while the first goes on serving; [`ServingPool::unload`] lets what waits be answered first. What the threads and the
//! handles share is `device`; what they pass to one another is in `exchange`.

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
