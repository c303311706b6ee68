//! The result of an examination of a store.

use std::collections::BTreeMap;

use crate::store::StoreError;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The faulty record, blob or reference.
    pub what: String,
    /// The effect, and on what.
    pub affects: String,
}

/// The result of an examination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoctorReport {
    /// Number of entries by table.
    pub entries: BTreeMap<String, u64>,
    /// Blobs verified byte by byte.
    pub n_blobs: u64,
    /// Blobs that have chunks but no record: writing them was interrupted, and the next start deletes them.
    pub n_unfinished_blobs: u64,
    /// Rows of deleted collections: nobody can read them, and the server removes them in the background.
    pub n_leftover_rows: u64,
    /// The faults found; empty if there are none.
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    pub(super) fn find(&mut self, what: impl Into<String>, affects: impl Into<String>) {
        self.findings.push(Finding { what: what.into(), affects: affects.into() });
    }

    /// Adds an error to the findings, once: several checks may find the same damaged page.
    pub(super) fn damaged(&mut self, error: StoreError) {
        let finding = match error {
            StoreError::Corrupt { what, affects } => Finding { what, affects },
            other => Finding { what: other.to_string(), affects: "the unreadable part cannot be used".to_owned() },
        };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}
