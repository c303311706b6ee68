//! The data of a training run: the rows of all sources, each with its image, labels and part.
//!
//! [`Dataset::load`] reads the tables and folders, hashes every image, draws the parts and encodes the labels. Unusable
//! rows are counted and named in the [`Dataset::report`]; they stop the run only when they exceed the recipe's share.
//! Images that cannot be decoded are found later, by [`super::Loader`], and added to the same report.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{
    csv_table, image_file,
    rejections::{Reason, Rejected, Rejections},
    row::Row,
    split::{self, ImageDigest, Split},
    utkface,
};
use crate::{
    proto::v1,
    training::{
        TrainingError,
        request::{DataSource, Head, MAX_LABELS, MAX_TEXT_BYTES, Recipe, Roots, Target},
    },
};

/// What to read, and how to split it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataRequest<'a> {
    /// Concatenated in this order.
    pub sources: &'a [DataSource],
    /// Defines heads, fractions, seed and the share of bad rows.
    pub recipe: &'a Recipe,
    /// All paths of a source must lie below one of these.
    pub roots: &'a Roots,
}

/// Progress of the reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadProgress {
    /// The current phase.
    pub phase: LoadPhase,
    /// Rows done.
    pub n_done: usize,
    /// Rows to do; 0 while unknown.
    pub n_total: usize,
}

/// A phase of the reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadPhase {
    /// Tables and folders are listed.
    Listing,
    /// Image files are read and hashed.
    Hashing,
    /// Images are decoded.
    Decoding,
}

/// Called for every row, from several threads; `Break` stops the reading with [`TrainingError::Cancelled`].
pub(crate) type LoadWatch<'a> = dyn Fn(LoadProgress) -> ControlFlow<()> + Sync + 'a;

/// A usable row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    /// The image's name in its source: relative to its folder, or as in the table.
    pub name: String,
    /// The image's file.
    pub path: PathBuf,
    /// The SHA-256 of the file's bytes.
    pub digest: ImageDigest,
    /// Its part.
    pub split: Split,
    /// For each head the number, or the label's index as a number; NaN for a missing label.
    pub labels: Vec<f32>,
}

/// The data of a training run.
#[derive(Debug)]
pub(crate) struct Dataset {
    heads: Vec<Head>,
    examples: Vec<Example>,
    rejections: Rejections,
    max_bad_fraction: f64,
    pub(super) all_were_decoded: bool,
}

impl Dataset {
    /// Reads everything but the images' pixels. Hashing runs on `pool`.
    ///
    /// # Errors
    /// [`TrainingError::BadData`] when too many rows are unusable or the others do not suffice for training;
    /// [`TrainingError::Io`] when a table or folder cannot be read; [`TrainingError::Cancelled`].
    pub(crate) fn load(
        request: &DataRequest<'_>,
        pool: &rayon::ThreadPool,
        watch: &LoadWatch<'_>,
    ) -> Result<Self, TrainingError> {
        let recipe = request.recipe;
        let mut data = Self {
            heads: recipe.heads.clone(),
            examples: Vec::new(),
            rejections: Rejections::default(),
            max_bad_fraction: recipe.max_bad_fraction,
            all_were_decoded: false,
        };
        check_columns(request)?;
        let rows = data.list(request, watch)?;
        if rows.is_empty() && data.rejections.total() == 0 {
            let searched = request.sources.iter().map(DataSource::describe).collect::<Vec<_>>().join(", ");
            return Err(data.bad(format!("nothing was found to train on: {searched}")));
        }
        data.check_share(rows.len())?;
        let rows = data.hash(rows, pool, watch)?;
        data.check_share(rows.len())?;
        let fractions = split::Fractions {
            valid: recipe.valid_fraction,
            calibration: recipe.calibration_fraction,
            seed: recipe.seed,
        };
        let wanted: Vec<_> = rows.iter().map(|(row, digest)| (row.split, *digest)).collect();
        let splits = split::assign(&wanted, fractions);
        let rows: Vec<_> = rows.into_iter().zip(splits).map(|((row, digest), split)| (row, digest, split)).collect();
        data.resolve_labels(&rows)?;
        for (row, digest, split) in rows {
            match encode(&data.heads, &row.labels) {
                Ok(labels) => {
                    data.examples.push(Example { name: row.name, path: row.path, digest, split, labels });
                }
                Err((reason, detail)) => data.rejections.add(Rejected { name: row.name, reason, detail }),
            }
        }
        data.check()?;
        Ok(data)
    }

    /// The recipe's heads, with the labels of every classification.
    #[must_use]
    pub(crate) fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Every usable row, in the sources' order.
    #[must_use]
    pub(crate) fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// The number of rows in a part.
    #[must_use]
    pub(crate) fn n_examples(&self, split: Split) -> usize {
        self.examples.iter().filter(|example| example.split == split).count()
    }

    /// A head's labels in a part, without the missing ones.
    pub(crate) fn labels(&self, split: Split, head_idx: usize) -> impl Iterator<Item = f32> + '_ {
        self.examples
            .iter()
            .filter(move |example| example.split == split)
            .filter_map(move |example| example.labels.get(head_idx).copied())
            .filter(|label| !label.is_nan())
    }

    /// Reports on the data; complete once the images were decoded.
    #[must_use]
    pub(crate) fn report(&self) -> v1::DataReport {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let n_rejected = i64::try_from(self.rejections.total()).unwrap_or(i64::MAX);
        v1::DataReport {
            rows: count(self.examples.len()).saturating_add(n_rejected),
            train: count(self.n_examples(Split::Train)),
            valid: count(self.n_examples(Split::Valid)),
            calibration: count(self.n_examples(Split::Calibration)),
            rejected: self.rejections.counts(),
            rejected_examples: self.rejections.named(),
            fingerprint: self.fingerprint(),
        }
    }

    /// SHA-256 in hex over the usable rows: names, parts, labels and images. The same data has the same fingerprint
    /// wherever it is stored and in whatever order it is listed.
    #[must_use]
    pub(crate) fn fingerprint(&self) -> String {
        let mut rows: Vec<_> = self.examples.iter().map(|example| self.row_digest(example)).collect();
        rows.sort_unstable();
        let mut all = Sha256::new_with_prefix(b"visage data 1\n");
        for head in &self.heads {
            add(&mut all, head.column.as_bytes());
        }
        for row in rows {
            all.update(row);
        }
        format!("{:x}", all.finalize())
    }

    fn row_digest(&self, example: &Example) -> ImageDigest {
        let mut row = Sha256::new();
        add(&mut row, example.name.as_bytes());
        add(&mut row, example.split.name().as_bytes());
        row.update(example.digest);
        for (head, label) in self.heads.iter().zip(&example.labels) {
            match &head.target {
                _ if label.is_nan() => add(&mut row, b""),
                Target::Regression { .. } => add(&mut row, &label.to_le_bytes()),
                // Hashed as text, since indices depend on the other rows.
                Target::Classification { labels } => {
                    add(&mut row, labels.get(*label as usize).map_or(&b""[..], |text| text.as_bytes()));
                }
            }
        }
        row.finalize().into()
    }

    /// Removes rows whose images turned out to be unreadable; `bad` is sorted.
    pub(super) fn drop_unreadable(&mut self, bad: Vec<(usize, String)>) -> Result<(), TrainingError> {
        let gone: BTreeSet<_> = bad.iter().map(|(example_idx, _)| *example_idx).collect();
        for (example_idx, detail) in bad {
            if let Some(example) = self.examples.get(example_idx) {
                let name = example.name.clone();
                self.rejections.add(Rejected { name, reason: Reason::UnreadableImage, detail });
            }
        }
        let mut example_idx = 0;
        self.examples.retain(|_| {
            example_idx += 1;
            !gone.contains(&(example_idx - 1))
        });
        self.all_were_decoded = true;
        self.check()
    }

    /// Lists the rows of all sources whose labels can be parsed.
    fn list(&mut self, request: &DataRequest<'_>, watch: &LoadWatch<'_>) -> Result<Vec<Row>, TrainingError> {
        let columns: Vec<_> = self.heads.iter().map(|head| head.column.clone()).collect();
        let mut rows = Vec::new();
        let mut n_done = 0;
        let mut flow = ControlFlow::Continue(());
        let (heads, rejections) = (&self.heads, &mut self.rejections);
        for source in request.sources {
            let visit = |row: Result<Row, Rejected>| {
                n_done += 1;
                if flow.is_continue() {
                    flow = watch(LoadProgress { phase: LoadPhase::Listing, n_done, n_total: 0 });
                }
                let checked = row.and_then(|row| match encode(heads, &row.labels) {
                    Ok(_) => Ok(row),
                    Err((reason, detail)) => Err(Rejected { name: row.name, reason, detail }),
                });
                match checked {
                    Ok(row) => rows.push(row),
                    Err(rejected) => rejections.add(rejected),
                }
            };
            match source {
                DataSource::UtkFace { folder } => utkface::read(folder, request.roots, &columns, visit)?,
                DataSource::Csv(source) => csv_table::read(source, request.roots, &columns, visit)?,
            }
            if flow.is_break() {
                return Err(TrainingError::Cancelled);
            }
        }
        Ok(rows)
    }

    /// Hashes every image.
    fn hash(
        &mut self,
        rows: Vec<Row>,
        pool: &rayon::ThreadPool,
        watch: &LoadWatch<'_>,
    ) -> Result<Vec<(Row, ImageDigest)>, TrainingError> {
        let n_total = rows.len();
        let counter = AtomicUsize::new(0);
        let hash_one = |row: Row| {
            let n_done = counter.fetch_add(1, Ordering::Relaxed) + 1;
            if watch(LoadProgress { phase: LoadPhase::Hashing, n_done, n_total }).is_break() {
                return Err(TrainingError::Cancelled);
            }
            Ok(match image_file::digest(&row.path) {
                Ok(digest) => Ok((row, digest)),
                Err(error) => {
                    Err(Rejected { name: row.name, reason: Reason::UnreadableImage, detail: error.to_string() })
                }
            })
        };
        let hashed: Vec<_> = pool.install(|| rows.into_par_iter().map(hash_one).collect::<Result<_, _>>())?;
        let mut good = Vec::with_capacity(hashed.len());
        for row in hashed {
            match row {
                Ok(row) => good.push(row),
                Err(rejected) => self.rejections.add(rejected),
            }
        }
        Ok(good)
    }

    /// Fills in the labels of classifications that list none: those of the training part, sorted.
    fn resolve_labels(&mut self, rows: &[(Row, ImageDigest, Split)]) -> Result<(), TrainingError> {
        for head_idx in 0..self.heads.len() {
            let Some(Head { target: Target::Classification { labels }, name, column, .. }) = self.heads.get(head_idx)
            else {
                continue;
            };
            if !labels.is_empty() {
                continue;
            }
            let found: BTreeSet<&str> = rows
                .iter()
                .filter(|(_, _, split)| *split == Split::Train)
                .filter_map(|(row, _, _)| row.labels.get(head_idx).map(String::as_str))
                .filter(|label| !label.is_empty())
                .collect();
            if !(2..=MAX_LABELS).contains(&found.len()) {
                return Err(self.bad(format!(
                    "head {name}: column {column:?} has {} different labels in the training part, a classification \
                     needs 2 to {MAX_LABELS}",
                    found.len()
                )));
            }
            let found = found.into_iter().map(str::to_owned).collect();
            if let Some(Head { target: Target::Classification { labels }, .. }) = self.heads.get_mut(head_idx) {
                *labels = found;
            }
        }
        Ok(())
    }

    /// Checks that the remaining rows suffice for training.
    fn check(&self) -> Result<(), TrainingError> {
        self.check_share(self.examples.len())?;
        let n_train = self.n_examples(Split::Train);
        let n_valid = self.n_examples(Split::Valid);
        if n_train < 2 || n_valid < 1 {
            return Err(self.bad(format!(
                "the usable rows give {n_train} to train on and {n_valid} to validate on; at least 2 and 1 are needed"
            )));
        }
        for (head_idx, head) in self.heads.iter().enumerate() {
            if self.labels(Split::Train, head_idx).next().is_none() {
                return Err(self.bad(format!("head {}: no row of the training part has a label", head.name)));
            }
        }
        Ok(())
    }

    fn check_share(&self, n_usable: usize) -> Result<(), TrainingError> {
        self.rejections.check_share(n_usable, self.max_bad_fraction).map_err(|detail| {
            let n_rows = self.rejections.total().saturating_add(n_usable as u64);
            let rows = i64::try_from(n_rows).unwrap_or(i64::MAX);
            // Before the split there are no examples to count.
            let report = v1::DataReport { rows, ..self.report() };
            TrainingError::BadData { detail, report: Some(Box::new(report)) }
        })
    }

    fn bad(&self, detail: String) -> TrainingError {
        TrainingError::BadData { detail, report: Some(Box::new(self.report())) }
    }
}

/// Checks that every head's column is in some source, so that no head with a misspelt column trains without labels.
fn check_columns(request: &DataRequest<'_>) -> Result<(), TrainingError> {
    let mut columns = BTreeSet::new();
    for source in request.sources {
        match source {
            DataSource::UtkFace { .. } => columns.extend(utkface::COLUMNS.map(str::to_owned)),
            DataSource::Csv(source) => columns.extend(csv_table::header(&source.table)?),
        }
    }
    for head in &request.recipe.heads {
        if !columns.contains(&head.column) {
            let known = columns.into_iter().collect::<Vec<_>>().join(", ");
            let detail = format!("head {}: no source has a column {:?}; there are {known}", head.name, head.column);
            return Err(TrainingError::BadData { detail, report: None });
        }
    }
    Ok(())
}

/// The largest absolute value of a regression's label. A label far beyond all others dominates the loss: one mistyped
/// label once let a network be promoted that had learnt nothing else. No age, sum or measure of a person is larger.
const LARGEST_LABEL: f32 = 1e9;

/// Encodes labels as numbers. A classification without a list accepts any label, for now as 0.
fn encode(heads: &[Head], texts: &[String]) -> Result<Vec<f32>, (Reason, String)> {
    let mut labels = Vec::with_capacity(heads.len());
    for (head, text) in heads.iter().zip(texts) {
        labels.push(match &head.target {
            _ if text.is_empty() => f32::NAN,
            _ if text.len() > MAX_TEXT_BYTES => {
                let detail = format!("{}: {} bytes are no label", head.column, text.len());
                return Err((Reason::BadLabel, detail));
            }
            Target::Regression { .. } => match text.parse::<f32>() {
                Ok(value) if value.abs() <= LARGEST_LABEL => value,
                Ok(value) if value.is_finite() => {
                    let detail = format!("{}: {text:?} is out of range, at most {LARGEST_LABEL}", head.column);
                    return Err((Reason::BadLabel, detail));
                }
                _ => return Err((Reason::BadLabel, format!("{}: {text:?} is no finite number", head.column))),
            },
            Target::Classification { labels } if labels.is_empty() => 0.0,
            Target::Classification { labels } => match labels.iter().position(|label| label == text) {
                // At most MAX_LABELS, which f32 holds exactly.
                Some(label_idx) => label_idx as f32,
                None => return Err((Reason::UnknownLabel, format!("{}: {text:?} is none of the labels", head.column))),
            },
        });
    }
    if labels.iter().all(|label| label.is_nan()) {
        return Err((Reason::NoLabel, "no head has a label".to_owned()));
    }
    Ok(labels)
}

/// Hashes a field after its length, so that different rows never hash the same bytes.
fn add(hash: &mut Sha256, field: &[u8]) {
    hash.update((field.len() as u64).to_le_bytes());
    hash.update(field);
}

#[cfg(test)]
mod tests;
