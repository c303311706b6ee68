//! Folders whose file names contain the labels, like UTKFace's: `{age}_{gender}_{race}_{timestamp}.*`.
//!
//! Provides the columns `age` and `gender` (male, female). A name must have the race field, which is not used as a
//! label.

use std::path::Path;

use walkdir::WalkDir;

use super::{
    rejections::{Reason, Rejected, path_refused},
    row::Row,
};
use crate::training::{TrainingError, request::Roots};

/// The columns of such a folder.
pub(super) const COLUMNS: [&str; 2] = ["age", "gender"];

/// File name extensions of images; other files are not rows. Formats that the decoder lacks are then reported as
/// unreadable images.
const PICTURES: [&str; 10] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "heic", "avif"];

/// The labels in a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    /// Years, 0 to 150.
    pub(super) age: u8,
    /// `male` or `female`.
    pub(super) gender: &'static str,
}

/// Parses a file's name.
pub(super) fn parse_name(name: &str) -> Result<Labels, String> {
    if name.chars().any(char::is_whitespace) {
        return Err("there is a space in the name".to_owned());
    }
    let stem = name.split('.').next().unwrap_or_default();
    let fields: Vec<_> = stem.split('_').collect();
    let [age, gender, race, timestamp] = fields[..] else {
        return Err(format!("the name has {} fields, expected age_gender_race_timestamp", fields.len()));
    };
    let age = match digits(age).then(|| age.parse::<u8>()) {
        Some(Ok(age)) if age <= 150 => age,
        _ => return Err(format!("{age:?} is no age in years")),
    };
    let gender = match gender {
        "0" => "male",
        "1" => "female",
        _ => return Err(format!("{gender:?} is no gender, expected 0 (male) or 1 (female)")),
    };
    if !matches!(race, "0" | "1" | "2" | "3" | "4") {
        return Err("the third field is not 0 to 4".to_owned());
    }
    if !digits(timestamp) {
        return Err(format!("{timestamp:?} is no timestamp"));
    }
    Ok(Labels { age, gender })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Visits the images of a folder and its sub-folders in the order of their names. Links to folders are not followed;
/// links to files are, within the training roots.
///
/// # Errors
/// [`TrainingError::Io`] when a folder cannot be read.
pub(super) fn read(
    folder: &Path,
    roots: &Roots,
    columns: &[String],
    mut visit: impl FnMut(Result<Row, Rejected>),
) -> Result<(), TrainingError> {
    for entry in WalkDir::new(folder).follow_links(false).sort_by_file_name() {
        let entry = entry.map_err(|error| TrainingError::Io {
            path: error.path().unwrap_or(folder).to_owned(),
            source: error.into(),
        })?;
        let kind = entry.file_type();
        let extension = entry.path().extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let is_picture = PICTURES.contains(&extension.to_ascii_lowercase().as_str());
        let file_name = entry.file_name().to_string_lossy();
        if !(kind.is_file() || kind.is_symlink()) || !is_picture || file_name.starts_with('.') {
            continue;
        }
        let name = entry.path().strip_prefix(folder).unwrap_or(entry.path()).to_string_lossy().into_owned();
        let reject = |reason, detail| Rejected { name: name.clone(), reason, detail };
        let path = if kind.is_file() {
            Ok(entry.path().to_owned())
        } else {
            roots.resolve_from(folder, &name).map_err(|refusal| {
                let (reason, detail) = path_refused(refusal, &name);
                reject(reason, detail)
            })
        };
        visit(path.and_then(|path| {
            let labels = parse_name(&file_name).map_err(|detail| reject(Reason::MalformedName, detail))?;
            let label = |column: &String| match column.as_str() {
                "age" => labels.age.to_string(),
                "gender" => labels.gender.to_owned(),
                _ => String::new(),
            };
            Ok(Row { name: name.clone(), path, split: None, labels: columns.iter().map(label).collect() })
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_names_are_read_with_and_without_the_chip_suffix() {
        for name in ["26_1_2_20170116220224657.jpg", "26_1_2_20170116220224657.jpg.chip.jpg", "26_1_2_1.PNG"] {
            assert_eq!(parse_name(name), Ok(Labels { age: 26, gender: "female" }), "{name}");
        }
        assert_eq!(parse_name("0_0_4_1.jpg"), Ok(Labels { age: 0, gender: "male" }));
    }

    #[test]
    fn every_kind_of_malformed_name_is_refused_with_its_reason() {
        for (name, reason) in [
            ("24_0_1_20170116220224657 .jpg.chip.jpg", "space"),
            ("39_1_20170116174525125.jpg.chip.jpg", "3 fields"),
            ("53__0_20170116184028385.jpg", "\"\" is no gender"),
            ("55_0_0_20170116232725357jpg.chip.jpg", "no timestamp"),
            ("61_2_0_20170109142408075.jpg", "\"2\" is no gender"),
            ("_0_0_20170109142408075.jpg", "\"\" is no age"),
            ("+5_0_0_20170109142408075.jpg", "no age"),
            ("151_0_0_20170109142408075.jpg", "no age"),
            ("1000_0_0_20170109142408075.jpg", "no age"),
            ("61_0_9_20170109142408075.jpg", "third field"),
            ("61_0__20170109142408075.jpg", "third field"),
            ("61_0_1_.jpg", "no timestamp"),
            ("61_0_1_2_3.jpg", "5 fields"),
            (".jpg", "1 fields"),
            ("portrait.jpg", "1 fields"),
        ] {
            let detail = parse_name(name).unwrap_err();
            assert!(detail.contains(reason), "{name}: {detail}");
        }
    }

    proptest! {
        #[test]
        fn written_names_are_read_back(age in 0_u8..=150, gender in 0..2, race in 0..5, time in any::<u64>()) {
            let labels = parse_name(&format!("{age}_{gender}_{race}_{time}.jpg.chip.jpg")).unwrap();
            prop_assert_eq!(labels.age, age);
            prop_assert_eq!(labels.gender, if gender == 0 { "male" } else { "female" });
        }

        #[test]
        fn no_name_makes_it_panic(name in "\\PC{0,40}") {
            let _ = parse_name(&name);
        }
    }

    #[test]
    fn a_folder_gives_its_pictures_in_order_and_reports_the_rest() {
        let tmp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(tmp.path()).unwrap();
        let folder = root.join("in/faces");
        fs::create_dir_all(folder.join("part2")).unwrap();
        fs::create_dir_all(root.join("out")).unwrap();
        for file in ["b_1.jpg", "9_0_0_1.jpg", "part2/8_1_0_1.png", "readme.txt", ".7_0_0_1.jpg"] {
            fs::write(folder.join(file), "").unwrap();
        }
        fs::write(root.join("out/7_0_0_1.jpg"), "").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../../out/7_0_0_1.jpg", folder.join("7_0_0_1.jpg")).unwrap();
        let roots = Roots::new(vec![root.join("in")]).unwrap();
        let mut rows = Vec::new();
        let columns = ["gender", "smoker", "age"].map(str::to_owned);
        read(&folder, &roots, &columns, |row| rows.push(row)).unwrap();
        let (good, bad): (Vec<_>, Vec<_>) = rows.into_iter().partition(Result::is_ok);
        let good: Vec<_> =
            good.into_iter().map(|row| row.unwrap()).map(|row| (row.name, row.labels.join("|"))).collect();
        let expected = [("9_0_0_1.jpg", "male||9"), ("part2/8_1_0_1.png", "female||8")];
        assert_eq!(good, expected.map(|(name, labels)| (name.to_owned(), labels.to_owned())));
        let bad: Vec<_> = bad.into_iter().map(|row| row.unwrap_err()).map(|row| (row.name, row.reason)).collect();
        let expected = [("7_0_0_1.jpg", Reason::PathOutsideRoots), ("b_1.jpg", Reason::MalformedName)];
        assert_eq!(bad, expected.map(|(name, reason)| (name.to_owned(), reason)));
    }
}
