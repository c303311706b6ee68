//! Whole-system tests, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod support;
mod training_data;
