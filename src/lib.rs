//! Visage serves and trains models that read a photo, for insurance back ends.
//!
//! The modules, in the order data flows: a call enters at [`grpc`] (or [`cli`]), is a use case in [`app`], which joins
//! [`serving`], [`training`] and [`similarity`] over the [`registry`]; pixels are made in [`vision`], tensors in
//! [`nn`], and everything that must survive lies in the [`store`]. Arrows point that way only; `tests/it/layering.rs`
//! holds the code to it. `ARCHITECTURE.md` has the picture.

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
pub(crate) mod training;
pub mod vision;
