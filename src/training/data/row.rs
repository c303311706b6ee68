//! A row as a source has it, before anything of it is checked against the recipe.

use std::path::PathBuf;

use super::split::Split;

/// A row as its source has it.
#[derive(Debug)]
pub(super) struct Row {
    /// The image as its source names it.
    pub(super) name: String,
    /// Resolved.
    pub(super) path: PathBuf,
    pub(super) split: Option<Split>,
    /// The text for each head; empty where there is none.
    pub(super) labels: Vec<String>,
}
