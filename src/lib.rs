//! Visage serves and trains models that read photos, for insurance back ends.
//!
//! The modules, in the order data flows: a call enters at [`grpc`] (or [`cli`]) and runs a use case in [`app`]. That
//! uses [`serving`], [`training`] and [`similarity`] on top of the [`registry`]. [`vision`] makes pixels, [`nn`] makes
//! tensors, and the [`store`] keeps all durable data. Dependencies point only that way; `tests/it/layering/` checks
//! it. `ARCHITECTURE.md` has the diagram.

pub mod proto;

pub(crate) mod app;
pub mod cli;
pub(crate) mod config;
pub(crate) mod digest;
pub mod error;
pub(crate) mod grpc;
pub(crate) mod mapped;
pub(crate) mod names;
pub mod nn;
pub(crate) mod registry;
pub(crate) mod serving;
pub(crate) mod similarity;
pub(crate) mod store;
pub(crate) mod telemetry;
pub(crate) mod threads;
pub(crate) mod training;
pub mod vision;
mod wiping;

#[global_allocator]
static ALLOCATOR: wiping::WipingAllocator = wiping::WipingAllocator;
