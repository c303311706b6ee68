//! The input of a training run: the rows of its sources, their parts and labels, and their images in batches.
//!
//! Owns the two kinds of source (`csv_table`, `utkface`), the reasons to reject rows (`rejections`), the part of each
//! row (`split`), and the decoding and augmentation of images (`loader`, `augment`). Pixels come from the same
//! functions as in serving. Knows no tensor.

mod augment;
mod csv_table;
mod dataset;
mod image_file;
mod loader;
mod rejections;
mod row;
mod split;
mod utkface;

pub(super) use augment::Augmentation;
pub(crate) use dataset::{DataRequest, Dataset};
pub(super) use dataset::{LoadPhase, LoadProgress};
pub(super) use loader::StageImages;
pub(crate) use loader::{BatchPlan, ImageSet, LabelledBatch, Loader, LoaderOptions, Order, Rest, Sides};
pub(crate) use split::Split;

#[cfg(test)]
mod tests;
