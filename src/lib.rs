//! Visage serves and trains models that read a photo, for insurance back ends.
//!
//! The modules, in the order data flows: a call enters at [`grpc`] (or [`cli`]), is a use case in [`app`], which joins
//! [`serving`], [`training`] and [`similarity`] over the [`registry`]; pixels are made in [`vision`], tensors in
//! [`nn`], and everything that must survive lies in the [`store`]. Arrows point that way only; `tests/it/layering.rs`
//! holds the code to it. `ARCHITECTURE.md` has the picture.

pub mod proto;

pub mod app;
pub mod cli;
pub mod config;
pub(crate) mod digest;
pub mod error;
pub mod grpc;
pub(crate) mod mapped;
pub mod names;
pub mod nn;
pub mod registry;
pub mod serving;
pub mod similarity;
pub mod store;
pub mod telemetry;
pub mod training;
pub mod vision;
