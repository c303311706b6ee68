//! From files on disk to batches, over folders and tables as callers have them.

use std::{fs, ops::ControlFlow, path::Path};

use super::{BatchPlan, DataRequest, Dataset, Loader, LoaderOptions, Order, Rest, Sides, Split, dataset::LoadWatch};
use crate::{
    proto::v1,
    training::{DataSource, Recipe, Roots},
};
use image::ImageFormat;

#[allow(dead_code, reason = "the whole-system tests use more of it")]
#[path = "../../../tests/it/support/faces.rs"]
mod faces;

use faces::{Person, write_bad_files, write_table, write_utkface};

const GO_ON: &LoadWatch<'static> = &|_| ControlFlow::Continue(());

fn heads() -> Vec<v1::Head> {
    let regression = v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() });
    let classification = v1::head::Kind::Classification(v1::ClassificationHead::default());
    [("age", regression), ("gender", classification.clone()), ("smoker", classification)]
        .map(|(name, kind)| v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() })
        .into()
}

fn utkface(path: &str) -> v1::DataSource {
    v1::DataSource { source: Some(v1::data_source::Source::Utkface(v1::UtkFaceFolder { path: path.to_owned() })) }
}

fn csv(path: &str) -> v1::DataSource {
    let table = v1::CsvTable { path: path.to_owned(), ..v1::CsvTable::default() };
    v1::DataSource { source: Some(v1::data_source::Source::Csv(table)) }
}

#[test]
fn a_folder_and_a_table_become_batches_and_bad_files_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    write_table(tmp.path(), 60);
    write_utkface(&tmp.path().join("utk"), 1000, 60);
    let bad = write_bad_files(&tmp.path().join("utk"));
    let recipe = Recipe::from_proto(&v1::Recipe {
        heads: heads(),
        stages: vec![v1::Stage { epochs: 1, image_size_px: 32, ..v1::Stage::default() }],
        ..v1::Recipe::default()
    })
    .unwrap();
    let roots = Roots::new(vec![tmp.path().to_owned()]).unwrap();
    let sources = DataSource::all_from_proto(&[utkface("utk"), csv("faces.csv")], &roots).unwrap();
    let loader = Loader::new(LoaderOptions::with_max_pixels(1_000_000)).unwrap();
    let request = DataRequest { sources: &sources, recipe: &recipe, roots: &roots };
    let mut dataset = Dataset::load(&request, loader.pool(), GO_ON).unwrap();
    let images = loader.prepare(&mut dataset, Sides::new(32, recipe.crop_fraction), GO_ON).unwrap();

    let report = dataset.report();
    assert_eq!((report.rows, report.train, report.valid, report.calibration), (124, 102, 12, 6));
    let expected = [("malformed_name", 2), ("unreadable_image", 2)].map(|(key, n)| (key.to_owned(), n));
    assert_eq!(report.rejected, expected.into());
    for name in bad {
        assert!(report.rejected_examples.iter().any(|row| row.name == name), "{name} is not named");
    }
    let plan = BatchPlan { batch_size: 32, order: Order::Shuffled { seed: 1 }, rest: Rest::Dropped };
    let batches: Vec<_> = images.train.batches(plan).collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.len(), 3);
    for batch in &batches {
        assert_eq!((batch.pixels.len(), batch.labels.len()), (32, 3));
        assert!(batch.pixels.iter().all(|pixels| pixels.side_px == 36 && pixels.rgb.len() == 36 * 36 * 3));
        assert!(batch.labels[0].iter().all(|age| (1.0..=90.0).contains(age)));
        assert!(batch.labels[1].iter().all(|gender| [0.0, 1.0].contains(gender)));
    }
    // UTKFace folders have no smoker column.
    assert!(batches.iter().any(|batch| batch.labels[2].iter().any(|smoker| smoker.is_nan())));
    assert!(dataset.labels(Split::Train, 2).count() < dataset.n_examples(Split::Train));
}

#[test]
fn sources_outside_the_roots_are_refused_and_absolute_ones_inside_are_not() {
    let tmp = tempfile::tempdir().unwrap();
    let inside = tmp.path().join("inside");
    write_utkface(&inside.join("utk"), 0, 3);
    write_utkface(&tmp.path().join("outside"), 0, 3);
    let roots = Roots::new(vec![inside.clone()]).unwrap();
    let refused = |source| DataSource::all_from_proto(&[source], &roots).unwrap_err().to_string();
    let absolute = |path: &Path| path.to_str().unwrap().to_owned();
    assert!(refused(utkface("../outside")).contains("not below a configured training root"));
    assert!(refused(utkface(&absolute(&tmp.path().join("outside")))).contains("not below a configured training root"));
    assert!(refused(csv("utk/none.csv")).contains("does not exist"));
    assert_eq!(refused(csv("utk")), "sources[0].csv.path: utk is not a file");
    assert_eq!(refused(utkface("")), "sources[0].utkface.path: must be given");
    assert_eq!(refused(v1::DataSource::default()), "sources[0]: must be utkface or csv");

    let found = DataSource::all_from_proto(&[utkface(&absolute(&inside.join("utk")))], &roots).unwrap();
    let job = found[0].to_proto().unwrap();
    assert_eq!(DataSource::all_from_proto(&[job], &roots).unwrap(), found);
    assert_eq!(found, [DataSource::UtkFace { folder: fs::canonicalize(inside.join("utk")).unwrap() }]);
}

#[test]
fn drawn_pictures_of_a_person_are_alike_and_repeatable() {
    let distance = |left: &image::RgbImage, right: &image::RgbImage| -> i64 {
        left.iter().zip(right.iter()).map(|(l, r)| (i64::from(*l) - i64::from(*r)).abs()).sum()
    };
    let (one, other) = (Person::of(1), Person { age: 80, ..Person::of(2) });
    assert_eq!(one.photo(3, ImageFormat::Png), Person::of(1).photo(3, ImageFormat::Png));
    assert_ne!(one.draw(3), one.draw(4));
    let one = Person { age: 10, ..one };
    assert!(distance(&one.draw(1), &one.draw(2)) < distance(&one.draw(1), &other.draw(1)));
}
