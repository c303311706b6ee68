//! Whole-system tests: the real program on a real port with real clients.
//!
//! Each test starts its own server as a child process on its own data folder. One model is trained once, and its data
//! folder copied. The tests write only to temporary folders.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod cached_weights;
mod churn;
mod client_python;
mod data_folder;
mod erasure;
mod errors;
mod faces;
mod full_disk;
mod health;
mod hostile_files;
mod kills;
mod layering;
mod reflection;
mod stops;
mod support;
mod system;
mod tours;
