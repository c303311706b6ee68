//! A row as read from a source, before it is checked against the recipe.

use std::path::PathBuf;

use super::split::Split;

/// A row as read from its source.
#[derive(Debug)]
pub(super) struct Row {
    /// The image's name in its source.
    pub(super) name: String,
    /// The resolved path.
    pub(super) path: PathBuf,
    pub(super) split: Option<Split>,
    /// The text for each head; empty if missing.
    pub(super) labels: Vec<String>,
}
