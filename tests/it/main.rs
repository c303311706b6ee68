//! Whole-system tests: the real program, a real port, a real client.
//!
//! Each test starts its own server as a child process on a data folder of its own; a trained model is made once and
//! its data folder copied. Nothing is written outside temporary folders.

mod client_python;
mod errors;
mod kills;
mod layering;
mod reflection;
mod support;
mod system;
