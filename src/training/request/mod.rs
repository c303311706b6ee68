//! The validated parts of a request: the recipe, the data sources, and the folders that callers may name.
//!
//! Owns the parsing of the contract's messages. Every [`Recipe`] and [`DataSource`] is valid by construction; later
//! code does not check again. Knows no image and no tensor.

mod recipe;
mod roots;
mod source;

pub(crate) use recipe::{Head, Recipe, Stage, Target, network_spec};
pub(super) use recipe::{MAX_LABELS, MAX_TEXT_BYTES};
pub(super) use roots::Refusal;
pub(crate) use roots::Roots;
pub(super) use source::CsvSource;
pub(crate) use source::DataSource;
