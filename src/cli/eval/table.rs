//! An evaluation folder's table.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::evidence::median;

/// The photos of a folder and what is known of them.
pub(super) struct FaceTable {
    pub(super) faces: Vec<Face>,
    pub(super) has_age: bool,
    pub(super) has_gender: bool,
}

/// A photo.
#[derive(Clone)]
pub(super) struct Face {
    pub(super) path: PathBuf,
    /// Years.
    pub(super) age: Option<f64>,
    /// As the table has it.
    pub(super) gender: Option<String>,
    /// The column `race`: compared by, never answered.
    pub(super) group: Option<String>,
    pub(super) is_valid: bool,
}

impl Face {
    /// The gender in words, where the table has UTKFace's numbers.
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
    /// When it is missing, is no table or has no column `path`.
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

    /// The photos whose `split` is `valid`.
    pub(super) fn valid(&self) -> Vec<&Face> {
        self.faces.iter().filter(|f| f.is_valid).collect()
    }

    /// The other photos.
    pub(super) fn train(&self) -> Vec<&Face> {
        self.faces.iter().filter(|f| !f.is_valid).collect()
    }

    /// What one would answer without looking, in years.
    pub(super) fn median_train_age(&self) -> Option<f64> {
        let mut ages: Vec<f64> = self.train().iter().filter_map(|f| f.age).collect();
        (!ages.is_empty()).then(|| median(&mut ages))
    }
}

/// The files below a folder in the order of their names, each with the name of the folder that it lies in: its person.
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
