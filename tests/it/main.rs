//! Whole-system tests: the real program, a real port, a real client.
//!
//! Each test starts its own server as a child process on a data folder of its own; a trained model is made once and
//! its data folder copied. Nothing is written outside temporary folders.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod cached_weights;
mod client_python;
mod data_folder;
mod errors;
mod faces;
mod hostile_files;
mod kills;
mod layering;
mod reflection;
mod stops;
mod support;
mod system;
mod tours;
mod training_data;
