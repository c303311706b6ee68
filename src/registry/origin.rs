//! Where a version comes from.

use crate::{
    names::VersionName,
    proto::{store::VersionRecord, v1},
};

/// The origin of a version; fields that do not apply are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origin {
    /// The training run: trainingRuns/{id}.
    pub training_run: String,
    /// The recipe of the training.
    pub recipe: Option<v1::Recipe>,
    /// The fingerprint of the training data.
    pub data_fingerprint: String,
    /// The imported file.
    pub imported_from: String,
    /// The version that training started from.
    pub parent_version: Option<VersionName>,
    /// The licence, as an SPDX expression.
    pub licence: String,
    /// The publisher of the weights.
    pub source: String,
    /// The published entry and its revision, if the server itself registered the version.
    pub published_as: String,
}

impl Origin {
    pub(super) fn of(record: &VersionRecord) -> Self {
        Self {
            training_run: record.training_run.clone(),
            recipe: record.recipe.clone(),
            data_fingerprint: record.data_fingerprint.clone(),
            imported_from: record.imported_from.clone(),
            parent_version: VersionName::parse("parent_version", &record.parent_version).ok(),
            licence: record.licence.clone(),
            source: record.source.clone(),
            published_as: record.published_as.clone(),
        }
    }
}
