//! What a caller asks for, checked: the recipe, where the data lies, and the folders that callers may name.
//!
//! Owns the parsing of the contract's messages; what exists of [`Recipe`] and [`Source`] is good, and nothing behind
//! them checks again. Knows no picture and no tensor.

mod recipe;
mod roots;
mod source;

pub(crate) use recipe::{Head, Recipe, Stage, Target, network_spec};
pub(super) use recipe::{MAX_LABELS, MAX_TEXT_BYTES};
pub(super) use roots::Refusal;
pub(crate) use roots::Roots;
pub(super) use source::CsvSource;
pub(crate) use source::Source;
