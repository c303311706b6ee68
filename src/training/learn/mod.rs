//! Trains a network on images, and measures how good it is.
//!
//! Owns the training loop (`fit`) with its schedule, the evaluation of a network, and the half widths of intervals.
//! Knows no process, no pipe and no file.

mod calibrate;
mod evaluate;
mod fit;
mod schedule;

pub(super) use calibrate::half_width;
pub(super) use evaluate::{LabelledOutputs, metrics};
pub(super) use fit::{Clock, Fit};
