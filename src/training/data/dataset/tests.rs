//! Tests of reading, splitting, labelling and reporting.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::training::{
    data::{Loader, LoaderOptions},
    request::CsvSource,
};

/// A training root with images named after their content; none of it is decoded here.
struct Folder {
    _tmp: TempDir,
    root: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(tmp.path()).unwrap();
        Self { _tmp: tmp, root }
    }

    fn picture(&self, name: &str) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }

    fn table(&self, name: &str, content: &str) -> DataSource {
        let table = self.root.join(name);
        fs::write(&table, content).unwrap();
        let image_root = self.root.clone();
        DataSource::Csv(CsvSource { table, path_column: "path".to_owned(), image_root, split_column: None })
    }

    fn load(&self, sources: &[DataSource], recipe: &Recipe) -> Result<Dataset, TrainingError> {
        self.load_watched(sources, recipe, &|_| ControlFlow::Continue(()))
    }

    fn load_watched(
        &self,
        sources: &[DataSource],
        recipe: &Recipe,
        watch: &LoadWatch<'_>,
    ) -> Result<Dataset, TrainingError> {
        let loader = Loader::new(LoaderOptions { n_threads: 2, ..LoaderOptions::with_max_pixels(1) }).unwrap();
        let roots = Roots::new(vec![self.root.clone()]).unwrap();
        Dataset::load(&DataRequest { sources, recipe, roots: &roots }, loader.pool(), watch)
    }
}

fn regression(name: &str) -> v1::Head {
    let kind = v1::head::Kind::Regression(v1::RegressionHead::default());
    v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() }
}

fn classification(name: &str, labels: &[&str]) -> v1::Head {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    let kind = v1::head::Kind::Classification(v1::ClassificationHead { labels });
    v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() }
}

fn recipe(heads: Vec<v1::Head>, change: impl FnOnce(&mut v1::Recipe)) -> Recipe {
    let mut recipe = v1::Recipe {
        heads,
        stages: vec![v1::Stage { epochs: 1, image_size_px: 32, ..v1::Stage::default() }],
        ..v1::Recipe::default()
    };
    change(&mut recipe);
    Recipe::from_proto(&recipe).unwrap()
}

/// Creates `n` images and returns the lines of a table of them.
fn lines(folder: &Folder, n: usize) -> String {
    (0..n)
        .map(|row| {
            folder.picture(&format!("p{row}.jpg"));
            format!("p{row}.jpg,{row},{}\n", if row % 3 == 0 { "yes" } else { "no" })
        })
        .collect()
}

#[test]
fn sources_are_joined_and_what_a_source_lacks_is_missing() {
    let folder = Folder::new();
    for picture in ["faces/31_0_1_1.jpg", "faces/44_1_0_2.jpg", "faces/61_1_20170109142408075.jpg"] {
        folder.picture(picture);
    }
    lines(&folder, 4);
    let table =
        "path,age,smoker,split\np0.jpg,0,yes,valid\np1.jpg,1,no,calibration\np2.jpg,2,no,\np3.jpg,3,yes,train\n";
    let sources = [DataSource::UtkFace { folder: folder.root.join("faces") }, folder.table("t.csv", table)];
    let heads = vec![regression("age"), classification("gender", &["male", "female"]), classification("smoker", &[])];
    let recipe = recipe(heads, |r| r.max_bad_fraction = Some(0.2));
    let data = folder.load(&sources, &recipe).unwrap();
    let labels: Vec<_> = data.examples().iter().map(|e| format!("{} {:?}", e.name, e.labels)).collect();
    assert_eq!(
        labels,
        [
            "31_0_1_1.jpg [31.0, 0.0, NaN]",
            "44_1_0_2.jpg [44.0, 1.0, NaN]",
            "p0.jpg [0.0, NaN, 1.0]",
            "p1.jpg [1.0, NaN, 0.0]",
            "p2.jpg [2.0, NaN, 0.0]",
            "p3.jpg [3.0, NaN, 1.0]",
        ]
    );
    let smoker = Target::Classification { labels: vec!["no".to_owned(), "yes".to_owned()] };
    assert_eq!(data.heads()[2].target, smoker);
    let report = data.report();
    assert_eq!((report.rows, report.train, report.valid, report.calibration), (7, 4, 1, 1));
    assert_eq!(report.rejected, [("malformed_name".to_owned(), 1)].into());
    assert_eq!(report.rejected_examples[0].name, "61_1_20170109142408075.jpg");
    assert!(report.rejected_examples[0].reason.starts_with("malformed_name: the name has 3 fields"));
}

#[test]
fn labels_that_cannot_be_used_are_rejected_row_by_row() {
    let folder = Folder::new();
    let table = lines(&folder, 20);
    for picture in ["a", "b", "c", "d", "e", "f"] {
        folder.picture(&format!("{picture}.jpg"));
    }
    let source = folder.table(
        "t.csv",
        &format!(
            "path,age,smoker\n{table}a.jpg,old,yes\nb.jpg,inf,yes\nc.jpg,,\nd.jpg,7,perhaps\ne.jpg,NaN,no\nf.jpg,,no\n"
        ),
    );
    let recipe = recipe(vec![regression("age"), classification("smoker", &["yes", "no"])], |r| {
        r.max_bad_fraction = Some(0.5);
    });
    let data = folder.load(&[source], &recipe).unwrap();
    let report = data.report();
    let expected = [("bad_label", 3), ("no_label", 1), ("unknown_label", 1)].map(|(key, n)| (key.to_owned(), n));
    assert_eq!(report.rejected, expected.into());
    let kept = data.examples().last().unwrap();
    assert!(kept.name == "f.jpg" && kept.labels[0].is_nan() && kept.labels[1] == 1.0);
}

#[test]
fn labels_are_found_in_the_training_part_and_others_rejected() {
    let folder = Folder::new();
    for picture in ["a", "b", "c", "d", "e"] {
        folder.picture(&format!("{picture}.jpg"));
    }
    let content = "path,g,split\na.jpg,z,train\nb.jpg,m,train\nc.jpg,m,valid\nd.jpg,new,valid\ne.jpg,z,calibration\n";
    let source = folder.table("t.csv", content);
    let recipe = recipe(vec![classification("g", &[])], |r| r.max_bad_fraction = Some(0.5));
    let data = folder.load(&[source], &recipe).unwrap();
    assert_eq!(data.heads()[0].target, Target::Classification { labels: vec!["m".to_owned(), "z".to_owned()] });
    let report = data.report();
    assert_eq!(report.rejected, [("unknown_label".to_owned(), 1)].into());
    assert_eq!((report.train, report.valid, report.calibration), (2, 1, 1));
    assert_eq!(data.labels(Split::Train, 0).collect::<Vec<_>>(), [1.0, 0.0]);
}

#[test]
fn too_many_bad_rows_stop_the_run_with_their_counts() {
    let folder = Folder::new();
    let table = lines(&folder, 18);
    let source = folder.table("t.csv", &format!("path,age,smoker\n{table}gone.jpg,1,no\n"));
    let error = folder.load(std::slice::from_ref(&source), &recipe(vec![regression("age")], |_| ())).unwrap_err();
    let TrainingError::BadData { detail, report: Some(report) } = error else { panic!("{error}") };
    assert!(detail.contains("1 of 19 rows") && detail.contains("1 file_not_found (such as t.csv:20"), "{detail}");
    assert_eq!((report.rows, report.rejected.get("file_not_found")), (19, Some(&1)));
    let lenient = recipe(vec![regression("age")], |r| r.max_bad_fraction = Some(0.06));
    assert!(folder.load(&[source], &lenient).is_ok());
}

#[test]
fn data_that_cannot_be_trained_on_is_refused_in_words() {
    let folder = Folder::new();
    let table = lines(&folder, 20);
    let source = folder.table("t.csv", &format!("path,age,smoker\n{table}"));
    let message = |head, content: &str| {
        let source = if content.is_empty() { source.clone() } else { folder.table("u.csv", content) };
        folder.load(&[source], &recipe(vec![head], |_| ())).unwrap_err().to_string()
    };
    let misspelt = message(regression("agee"), "");
    assert_eq!(misspelt, "head agee: no source has a column \"agee\"; there are age, path, smoker");
    let copies = message(regression("age"), "path,age\np0.jpg,1\np0.jpg,2\n");
    assert!(copies.contains("0 to train on and 2 to validate on; at least 2 and 1 are needed"), "{copies}");
    let one = message(classification("age", &[]), "path,age\np0.jpg,1\np1.jpg,1\np2.jpg,1\np3.jpg,1\n");
    assert!(one.contains("has 1 different labels"), "{one}");
    for head in [regression("age"), classification("age", &[])] {
        let empty = message(head, "path,age\n");
        assert_eq!(empty, "nothing was found to train on: the table u.csv has a header and no line below it");
    }
    for (label, range) in [("1e38", "at most 1000000000"), ("-1e10", "at most 1000000000"), ("inf", "no finite number")]
    {
        let far = message(regression("age"), &format!("path,age\np0.jpg,{label}\np1.jpg,1\np2.jpg,2\n"));
        assert!(far.contains("bad_label"), "{far}");
        let TrainingError::BadData { report: Some(report), .. } = folder
            .load(
                &[folder.table("u.csv", &format!("path,age\np0.jpg,{label}\np1.jpg,1\np2.jpg,2\n"))],
                &recipe(vec![regression("age")], |_| ()),
            )
            .unwrap_err()
        else {
            panic!("no report")
        };
        assert!(report.rejected_examples[0].reason.contains(range), "{:?}", report.rejected_examples);
    }
    fs::create_dir(folder.root.join("nobody")).unwrap();
    let nobody = DataSource::UtkFace { folder: folder.root.join("nobody") };
    let error = folder.load(&[nobody], &recipe(vec![classification("gender", &[])], |_| ())).unwrap_err().to_string();
    assert!(error.starts_with("nothing was found to train on: the folder nobody"), "{error}");
    let none = message(regression("age"), "path,age,split\np0.jpg,1,valid\np1.jpg,2,valid\n");
    assert!(none.contains("0 to train on and 2 to validate on"), "{none}");
}

#[test]
fn a_file_that_is_no_table_is_told_for_what_it_is() {
    let folder = Folder::new();
    let utf16: Vec<u8> = "path,age\np0.jpg,1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark = [b"\xff\xfe".as_slice(), &utf16].concat();
    let cases: [(&[u8], &str); 6] = [
        (&with_mark, "UTF-16"),
        (&utf16, "UTF-16"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"", "empty"),
        (b"\xef\xbb\xbfpath,age\n", "nothing was found"),
    ];
    for (bytes, expected) in cases {
        let source = folder.table("t.csv", "");
        fs::write(folder.root.join("t.csv"), bytes).unwrap();
        let error = folder.load(&[source], &recipe(vec![regression("age")], |_| ())).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn the_fingerprint_is_of_the_data_not_of_its_place_or_order() {
    let fingerprint = |change: &dyn Fn(&Folder, &mut String), heads: Vec<v1::Head>| {
        let folder = Folder::new();
        let mut table = lines(&folder, 12);
        change(&folder, &mut table);
        let source = folder.table("t.csv", &format!("path,age,smoker\n{table}"));
        folder.load(&[source], &recipe(heads, |_| ())).unwrap().fingerprint()
    };
    let heads = || vec![regression("age"), classification("smoker", &[])];
    let plain = fingerprint(&|_, _| (), heads());
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, fingerprint(&|_, _| (), heads()));
    let turned = |_: &Folder, table: &mut String| {
        *table = table.lines().rev().map(|line| format!("{line}\n")).collect();
    };
    assert_eq!(plain, fingerprint(&turned, heads()));
    let relabelled = |_: &Folder, table: &mut String| *table = table.replace("p3.jpg,3,yes", "p3.jpg,3,no");
    assert_ne!(plain, fingerprint(&relabelled, heads()));
    let aged = |_: &Folder, table: &mut String| *table = table.replace("p3.jpg,3,", "p3.jpg,4,");
    assert_ne!(plain, fingerprint(&aged, heads()));
    let repainted = |folder: &Folder, _: &mut String| fs::write(folder.root.join("p3.jpg"), "other").unwrap();
    assert_ne!(plain, fingerprint(&repainted, heads()));
    assert_ne!(plain, fingerprint(&|_, _| (), vec![regression("age")]));
}

#[test]
fn a_split_column_is_obeyed_and_the_same_seed_draws_the_same() {
    let folder = Folder::new();
    let table = lines(&folder, 100);
    let source = folder.table("t.csv", &format!("path,age,smoker\n{table}"));
    let splits = |seed| {
        let recipe = recipe(vec![regression("age")], |r| r.seed = seed);
        let data = folder.load(std::slice::from_ref(&source), &recipe).unwrap();
        data.examples().iter().map(|example| example.split).collect::<Vec<_>>()
    };
    assert_eq!(splits(1), splits(1));
    assert_ne!(splits(1), splits(2));
    assert_eq!(splits(1).iter().filter(|split| **split == Split::Valid).count(), 10);
}

#[test]
fn reading_can_be_cancelled_and_tells_how_far_it_is() {
    let folder = Folder::new();
    let table = lines(&folder, 10);
    let source = folder.table("t.csv", &format!("path,age,smoker\n{table}"));
    let recipe = recipe(vec![regression("age")], |_| ());
    for phase in [LoadPhase::Listing, LoadPhase::Hashing] {
        let watch = move |at: LoadProgress| {
            if at.phase == phase && at.n_done > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = folder.load_watched(std::slice::from_ref(&source), &recipe, &watch).unwrap_err();
        assert!(matches!(error, TrainingError::Cancelled), "{error}");
    }
    let hashed = AtomicUsize::new(0);
    let watch = |at: LoadProgress| {
        if at.phase == LoadPhase::Hashing {
            assert_eq!(at.n_total, 10);
            hashed.fetch_max(at.n_done, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    };
    folder.load_watched(&[source], &recipe, &watch).unwrap();
    assert_eq!(hashed.into_inner(), 10);
}

#[test]
fn a_table_that_is_gone_is_named() {
    let folder = Folder::new();
    let source = folder.table("t.csv", "path,age\n");
    fs::remove_file(folder.root.join("t.csv")).unwrap();
    let error = folder.load(&[source], &recipe(vec![regression("age")], |_| ())).unwrap_err();
    assert!(matches!(&error, TrainingError::Io { path, .. } if path.ends_with(Path::new("t.csv"))), "{error}");
}
