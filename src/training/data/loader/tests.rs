//! Tests of decoding, memory budgets and batches.

use std::{collections::BTreeSet, fs, ops::ControlFlow};

use tempfile::TempDir;

use super::*;
use crate::{
    proto::v1,
    training::{
        data::DataRequest,
        request::{CsvSource, DataSource, Recipe, Roots},
    },
    vision::{self, DecodeLimits},
};

const GO_ON: &LoadWatch<'static> = &|_| ControlFlow::Continue(());
const SIDES: Sides = Sides { train_px: 36, eval_px: 32 };

/// A table of images, each in its own plain colour, with the row's number as the label; `bad` rows are not images.
struct Pictures {
    _tmp: TempDir,
    root: std::path::PathBuf,
    dataset: Dataset,
}

fn pictures(n: u8, n_bad: u8) -> Pictures {
    let tmp = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(tmp.path()).unwrap();
    let mut table = "path,level,split\n".to_owned();
    for row in 0..n {
        let split = if row % 5 == 4 { "valid" } else { "train" };
        table.push_str(&format!("{row}.png,{row},{split}\n"));
        let file = root.join(format!("{row}.png"));
        if row >= n - n_bad {
            fs::write(file, "no picture").unwrap();
        } else {
            image::RgbImage::from_pixel(48, 40, image::Rgb([row, 100, 200])).save(file).unwrap();
        }
    }
    fs::write(root.join("t.csv"), table).unwrap();
    let kind = v1::head::Kind::Regression(v1::RegressionHead::default());
    let recipe = Recipe::from_proto(&v1::Recipe {
        heads: vec![v1::Head { name: "level".to_owned(), kind: Some(kind), ..v1::Head::default() }],
        stages: vec![v1::Stage { epochs: 1, image_size_px: 32, ..v1::Stage::default() }],
        calibration_fraction: Some(0.0),
        ..v1::Recipe::default()
    })
    .unwrap();
    let source = DataSource::Csv(CsvSource {
        table: root.join("t.csv"),
        path_column: "path".to_owned(),
        image_root: root.clone(),
        split_column: None,
    });
    let roots = Roots::new(vec![root.clone()]).unwrap();
    let request = DataRequest { sources: &[source], recipe: &recipe, roots: &roots };
    let dataset = Dataset::load(&request, loader(0).pool(), GO_ON).unwrap();
    Pictures { _tmp: tmp, root, dataset }
}

fn loader(memory_budget_bytes: u64) -> Loader {
    Loader::new(LoaderOptions { n_threads: 2, max_pixels: 10_000, memory_budget_bytes, n_prefetch: 2 }).unwrap()
}

fn plan(batch_size: usize) -> BatchPlan {
    BatchPlan { batch_size, order: Order::Listed, rest: Rest::Kept }
}

fn pass(set: &ImageSet, plan: BatchPlan) -> Vec<LabelledBatch> {
    let batches: Vec<_> = set.batches(plan).collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.len(), set.n_batches(plan));
    batches
}

#[test]
fn batches_are_the_same_within_and_beyond_the_budget() {
    let n_picture_bytes = 36 * 36 * 3;
    let shuffled = BatchPlan { order: Order::Shuffled { seed: 3 }, ..plan(7) };
    let of_budget = |budget| {
        let mut pictures = pictures(50, 0);
        let images = loader(budget).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
        [pass(&images.train, plan(7)), pass(&images.train, shuffled), pass(&images.valid, plan(4))]
    };
    let in_memory = of_budget(u64::MAX);
    assert_eq!(in_memory, of_budget(0));
    assert_eq!(in_memory, of_budget(10 * n_picture_bytes));
    assert_eq!(in_memory[0].iter().map(|batch| batch.pixels.len()).collect::<Vec<_>>(), [7, 7, 7, 7, 7, 5]);
}

#[test]
fn pixels_are_those_that_serving_would_make_and_fit_their_labels() {
    let mut pictures = pictures(10, 0);
    let images = loader(u64::MAX).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    for (set, side_px) in [(&images.train, 36), (&images.valid, 32)] {
        assert_eq!(set.side_px(), side_px);
        for batch in set.batches(BatchPlan { order: Order::Shuffled { seed: 1 }, ..plan(3) }) {
            let batch = batch.unwrap();
            for (pixels, level) in batch.pixels.iter().zip(&batch.labels[0]) {
                let file = fs::read(pictures.root.join(format!("{level}.png"))).unwrap();
                let photo = vision::decode_square(&file, &DecodeLimits::default(), side_px).unwrap();
                assert_eq!(**pixels, photo.pixels);
                assert_eq!(f32::from(pixels.rgb[0]), *level);
            }
        }
    }
}

#[test]
fn a_shuffled_pass_visits_every_picture_once_in_the_seeds_order() {
    let mut pictures = pictures(40, 0);
    let images = loader(u64::MAX).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    let order = |seed| {
        let shuffled = BatchPlan { order: Order::Shuffled { seed }, ..plan(5) };
        pass(&images.train, shuffled).into_iter().flat_map(|batch| batch.labels[0].clone()).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_eq!(order(1).iter().map(|level| *level as u8).collect::<BTreeSet<_>>().len(), 32);
}

#[test]
fn a_rest_is_kept_or_dropped_but_never_all_there_is() {
    let mut pictures = pictures(15, 0);
    let images = loader(u64::MAX).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    let sizes = |batch_size, rest| {
        let plan = BatchPlan { rest, ..plan(batch_size) };
        pass(&images.train, plan).iter().map(|batch| batch.pixels.len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(5, Rest::Kept), [5, 5, 2]);
    assert_eq!(sizes(5, Rest::Dropped), [5, 5]);
    assert_eq!(sizes(100, Rest::Dropped), [12]);
    assert!(images.calibration.is_empty());
    assert_eq!(pass(&images.calibration, plan(5)), []);
}

#[test]
fn unreadable_pictures_are_reported_and_left_out() {
    let mut pictures = pictures(60, 2);
    let images = loader(0).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    assert_eq!(images.train.len() + images.valid.len(), 58);
    let report = pictures.dataset.report();
    assert_eq!(report.rejected, [("unreadable_image".to_owned(), 2)].into());
    assert_eq!((report.rows, report.train, report.valid), (60, 47, 11));
    assert_eq!(report.rejected_examples[0].name, "58.png");
    assert!(report.rejected_examples[0].reason.contains("not a JPEG, PNG or WebP"));
}

#[test]
fn too_many_unreadable_pictures_stop_the_run() {
    let mut pictures = pictures(20, 2);
    let error = loader(0).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap_err();
    let TrainingError::BadData { detail, report: Some(report) } = error else { panic!("{error}") };
    assert!(detail.contains("2 of 20 rows are unusable") && detail.contains("18.png"), "{detail}");
    assert_eq!(report.rejected.get("unreadable_image"), Some(&2));
}

#[test]
fn a_file_that_vanishes_in_the_run_ends_the_pass_with_its_name() {
    let mut pictures = pictures(20, 0);
    let images = loader(0).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    fs::remove_file(pictures.root.join("5.png")).unwrap();
    let batches: Vec<_> = images.train.batches(plan(4)).collect();
    let error = batches.last().unwrap().as_ref().unwrap_err();
    assert!(error.to_string().contains("5.png"), "{error}");
    assert_eq!(batches.iter().filter(|batch| batch.is_err()).count(), 1);
}

#[test]
fn a_pass_can_be_left_and_decoding_cancelled() {
    let mut pictures = pictures(50, 0);
    let images = loader(0).prepare(&mut pictures.dataset, SIDES, GO_ON).unwrap();
    // Would wait for ever if the reading ahead did not stop with its reader.
    drop(images.train.batches(plan(1)).nth(2));
    let stop: &LoadWatch<'_> = &|at| if at.n_done > 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let error = loader(0).prepare(&mut pictures.dataset, SIDES, stop).unwrap_err();
    assert!(matches!(error, TrainingError::Cancelled), "{error}");
}

#[test]
fn a_crop_has_room_in_the_training_pictures() {
    assert_eq!(Sides::new(64, 0.1), Sides { train_px: 72, eval_px: 64 });
    assert_eq!(Sides::new(64, 0.0), Sides { train_px: 64, eval_px: 64 });
    assert_eq!(Sides::new(512, 0.5), Sides { train_px: 1024, eval_px: 512 });
}
