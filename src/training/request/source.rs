//! The sources of images and labels, with every path checked.

use std::path::{Path, PathBuf};

use super::Roots;
use crate::{proto::v1, training::TrainingError};

/// A set of images with labels; its paths lie below a training root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataSource {
    /// Images whose file names contain the labels.
    UtkFace {
        /// Searched recursively.
        folder: PathBuf,
    },
    /// A table of images.
    Csv(CsvSource),
}

impl DataSource {
    /// Describes for people what was searched, and where.
    pub(crate) fn describe(&self) -> String {
        let named = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        match self {
            Self::UtkFace { folder } => {
                format!("the folder {} and its sub-folders contain no file with an image's extension", named(folder))
            }
            Self::Csv(source) => format!("the table {} has a header and no line below it", named(&source.table)),
        }
    }
}

/// A table with a header line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CsvSource {
    /// The file.
    pub table: PathBuf,
    /// The column of image paths.
    pub path_column: String,
    /// The folder that relative image paths start from.
    pub image_root: PathBuf,
    /// The column that contains train, valid or calibration; `None`: "split", if it exists.
    pub split_column: Option<String>,
}

impl DataSource {
    /// Checks the sources of a request: each path is resolved and exists.
    ///
    /// # Errors
    /// [`TrainingError::FieldInvalid`] naming the field, or an error of [`Roots::resolve`].
    pub(crate) fn all_from_proto(sources: &[v1::DataSource], roots: &Roots) -> Result<Vec<Self>, TrainingError> {
        if sources.is_empty() || sources.len() > 64 {
            return Err(TrainingError::field("sources", format!("must have 1 to 64 entries, got {}", sources.len())));
        }
        sources
            .iter()
            .enumerate()
            .map(|(source_idx, source)| Self::from_proto(&format!("sources[{source_idx}]"), source, roots))
            .collect()
    }

    fn from_proto(field: &str, source: &v1::DataSource, roots: &Roots) -> Result<Self, TrainingError> {
        match &source.source {
            None => Err(TrainingError::field(field, "must be utkface or csv")),
            Some(v1::data_source::Source::Utkface(source)) => {
                Ok(Self::UtkFace { folder: folder(&format!("{field}.utkface.path"), &source.path, roots)? })
            }
            Some(v1::data_source::Source::Csv(source)) => {
                let table_field = format!("{field}.csv.path");
                let table = roots.resolve(&table_field, &source.path)?;
                if !table.is_file() {
                    return Err(TrainingError::field(table_field, format!("{} is not a file", source.path)));
                }
                let image_root = if source.image_root.is_empty() {
                    table.parent().unwrap_or(Path::new("/")).to_owned()
                } else {
                    folder(&format!("{field}.csv.image_root"), &source.image_root, roots)?
                };
                let path_column = if source.path_column.is_empty() { "path" } else { &source.path_column };
                Ok(Self::Csv(CsvSource {
                    table,
                    path_column: path_column.to_owned(),
                    image_root,
                    split_column: Some(source.split_column.clone()).filter(|column| !column.is_empty()),
                }))
            }
        }
    }

    /// Converts to the contract's form with absolute paths, for the job of a worker with the same training roots.
    ///
    /// # Errors
    /// [`TrainingError::FieldInvalid`] for a path that is not UTF-8, which the contract cannot carry.
    pub(crate) fn to_proto(&self) -> Result<v1::DataSource, TrainingError> {
        let source = match self {
            Self::UtkFace { folder } => v1::data_source::Source::Utkface(v1::UtkFaceFolder { path: utf8(folder)? }),
            Self::Csv(source) => v1::data_source::Source::Csv(v1::CsvTable {
                path: utf8(&source.table)?,
                path_column: source.path_column.clone(),
                image_root: utf8(&source.image_root)?,
                split_column: source.split_column.clone().unwrap_or_default(),
            }),
        };
        Ok(v1::DataSource { source: Some(source) })
    }
}

fn folder(field: &str, path: &str, roots: &Roots) -> Result<PathBuf, TrainingError> {
    let found = roots.resolve(field, path)?;
    if found.is_dir() { Ok(found) } else { Err(TrainingError::field(field, format!("{path} is not a folder"))) }
}

fn utf8(path: &Path) -> Result<String, TrainingError> {
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => Err(TrainingError::field("sources", format!("{} is not a UTF-8 path", path.display()))),
    }
}
