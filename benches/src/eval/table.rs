//! Reads an evaluation folder's table.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::evidence::median;

/// The photos of a folder with their labels.
pub(super) struct FaceTable {
    pub(super) faces: Vec<Face>,
    pub(super) has_age: bool,
    pub(super) has_gender: bool,
}

/// A photo with its labels.
#[derive(Clone)]
pub(super) struct Face {
    pub(super) path: PathBuf,
    /// The age in years.
    pub(super) age: Option<f64>,
    /// The gender as in the table.
    pub(super) gender: Option<String>,
    /// The column `race`, used only to compare groups.
    pub(super) group: Option<String>,
    pub(super) is_valid: bool,
}

impl Face {
    /// Returns the gender's name, also for UTKFace's numbers.
    pub(super) fn gender_name(&self) -> Option<&str> {
        match self.gender.as_deref() {
            Some("0") => Some("male"),
            Some("1") => Some("female"),
            other => other,
        }
    }
}

impl FaceTable {
    /// Reads `faces.csv`.
    ///
    /// # Errors
    /// Fails when it is missing, is not a table or has no column `path`.
    pub(super) fn read(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("faces.csv");
        let mut reader = csv::Reader::from_path(&path).with_context(|| path.display().to_string())?;
        let headers = reader.headers()?.clone();
        let column = |name: &str| headers.iter().position(|h| h == name);
        let path_at = column("path").context("faces.csv has no column `path`")?;
        let (age_at, gender_at) = (column("age"), column("gender"));
        let (group_at, split_at) = (column("race"), column("split"));
        let mut faces = Vec::new();
        for row in reader.records() {
            let row = row?;
            let cell = |at: Option<usize>| at.and_then(|at| row.get(at)).filter(|cell| !cell.is_empty());
            faces.push(Face {
                path: data.join(row.get(path_at).unwrap_or_default()),
                age: cell(age_at).and_then(|age| age.parse().ok()),
                gender: cell(gender_at).map(str::to_owned),
                group: cell(group_at).map(str::to_owned),
                is_valid: cell(split_at) == Some("valid"),
            });
        }
        Ok(Self { faces, has_age: age_at.is_some(), has_gender: gender_at.is_some() })
    }

    /// Selects the photos whose `split` is `valid`.
    pub(super) fn valid(&self) -> Vec<&Face> {
        self.faces.iter().filter(|f| f.is_valid).collect()
    }

    /// Selects the other photos.
    pub(super) fn train(&self) -> Vec<&Face> {
        self.faces.iter().filter(|f| !f.is_valid).collect()
    }

    /// The median age of the training part in years: the baseline that needs no photo.
    pub(super) fn median_train_age(&self) -> Option<f64> {
        let mut ages: Vec<f64> = self.train().iter().filter_map(|f| f.age).collect();
        (!ages.is_empty()).then(|| median(&mut ages))
    }
}

/// Lists the files below a folder in the order of their names, each with its person: the name of the file's folder.
pub(super) fn people(folder: &Path) -> Vec<(PathBuf, String)> {
    let files = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().filter_map(Result::ok);
    files
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.into_path();
            let person = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            (path, person)
        })
        .collect()
}
