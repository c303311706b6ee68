//! Whole-system tests, in one binary.

mod support;
mod training_data;
