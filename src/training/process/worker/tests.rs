//! Tests of whole jobs in this process, on images that a small network learns in seconds.

use std::{fs, sync::Arc};

use tempfile::TempDir;

use super::*;
use crate::{digest::Digest, nn::TensorData, proto::worker::FailureKind};

/// Returns an image's colour. Test images must resemble the training images: outputs for any other colour vary with the
/// machine's rounding.
fn tinted(level: u8, is_red: bool) -> [u8; 3] {
    let (more, less) = (level + 55, level / 2);
    if is_red { [more, level, less] } else { [less, level, more] }
}

/// Creates a training root with a table of plain images: their brightness is `level`, their tint `tint`.
fn pictures(n: u8) -> TempDir {
    let tmp = tempfile::tempdir().unwrap();
    let mut table = "path,level,tint,split\n".to_owned();
    for row in 0..n {
        let level = row.wrapping_mul(37) % 200;
        let is_red = row % 2 == 0;
        let picture = image::RgbImage::from_pixel(36, 36, image::Rgb(tinted(level, is_red)));
        picture.save(tmp.path().join(format!("{row}.png"))).unwrap();
        let split = match row % 6 {
            4 => "valid",
            5 => "calibration",
            _ => "train",
        };
        let tint = if is_red { "red" } else { "blue" };
        table.push_str(&format!("{row}.png,{:.2},{tint},{split}\n", f32::from(level) / 10.0));
    }
    fs::write(tmp.path().join("t.csv"), table).unwrap();
    fs::create_dir(tmp.path().join("scratch")).unwrap();
    tmp
}

fn job(tmp: &TempDir, change: impl FnOnce(&mut v1::Recipe)) -> Job {
    let head = |name: &str, kind| v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() };
    let mut recipe = v1::Recipe {
        architecture: v1::Architecture::Resnet18.into(),
        heads: vec![
            head("level", v1::head::Kind::Regression(v1::RegressionHead::default())),
            head("tint", v1::head::Kind::Classification(v1::ClassificationHead::default())),
        ],
        stages: vec![v1::Stage { epochs: 3, image_size_px: 32, max_learning_rate: 3e-3, freeze_body: false }],
        batch_size: 16,
        dropout: Some(0.0),
        seed: 1,
        ..v1::Recipe::default()
    };
    change(&mut recipe);
    let table = v1::CsvTable { path: "t.csv".to_owned(), ..v1::CsvTable::default() };
    Job {
        run_id: "r".to_owned(),
        recipe: Some(recipe),
        sources: vec![v1::DataSource { source: Some(v1::data_source::Source::Csv(table)) }],
        scratch_dir: tmp.path().join("scratch").to_str().unwrap().to_owned(),
        device: "cpu".to_owned(),
        n_threads: 1,
        max_pixels: 10_000,
        roots: vec![tmp.path().to_str().unwrap().to_owned()],
        ..Job::default()
    }
}

fn events(job: Job) -> Vec<Event> {
    cancellable(job, &AtomicBool::new(false))
}

fn cancellable(job: Job, cancelled: &AtomicBool) -> Vec<Event> {
    let mut output = Vec::new();
    let _ = work(job, &mut output, cancelled);
    let mut pipe = output.as_slice();
    let mut events = Vec::new();
    while let Some(event) = read_frame::<WorkerEvent>(&mut pipe).unwrap() {
        events.push(event.event.unwrap());
    }
    events
}

fn finished(events: Vec<Event>) -> Finished {
    match events.into_iter().last() {
        Some(Event::Finished(finished)) => finished,
        other => panic!("it did not finish: {other:?}"),
    }
}

fn failed(events: Vec<Event>) -> (FailureKind, String) {
    match events.into_iter().last() {
        Some(Event::Failed(failed)) => (failed.kind(), failed.message),
        other => panic!("it did not fail: {other:?}"),
    }
}

#[test]
fn a_job_becomes_weights_that_answer_as_they_say() {
    let tmp = pictures(120);
    let events = events(job(&tmp, |recipe| recipe.stages[0].epochs = 12));
    let report = events.iter().find_map(|event| match event {
        Event::Data(report) => Some(report.clone()),
        _ => None,
    });
    let report = report.unwrap();
    assert_eq!((report.rows, report.train, report.valid, report.calibration), (120, 80, 20, 20));
    let reported: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Progress(progress) => Some(progress),
            _ => None,
        })
        .collect();
    assert!(reported.iter().any(|progress| progress.stage == 0 && progress.n_steps == 120));
    let last = reported.last().unwrap();
    assert_eq!((last.stage, last.epoch, last.n_epochs, last.step, last.n_steps), (1, 12, 12, 5, 5));
    assert!(last.eta.is_some() && last.loss.is_finite() && last.metrics.contains_key("level.mae"));

    let finished = finished(events);
    // Predicting the mean scores 4.9 and one half.
    assert!(finished.metrics["level.mae"] < 3.0, "{:?}", finished.metrics);
    assert!(finished.metrics["tint.accuracy"] > 0.9, "{:?}", finished.metrics);
    assert!(finished.metrics.contains_key("level.coverage"));
    assert_eq!((finished.calibrations.len(), finished.calibrations[0].n_examples), (1, 20));
    let labels =
        v1::head::Kind::Classification(v1::ClassificationHead { labels: ["blue", "red"].map(str::to_owned).into() });
    assert_eq!(finished.heads[1].kind, Some(labels));
    let file = bytes::Bytes::from(fs::read(&finished.weights_file).unwrap());
    assert_eq!(Digest::of(&file).as_bytes().as_slice(), finished.weights_digest);

    // The file's network reproduces the golden outputs, and accepts an image.
    let heads = Head::parse_all("heads", &finished.heads).unwrap();
    let spec = network_spec(nn::Architecture::ResNet18, &heads, 0.0);
    let tensors = nn::parse_safetensors(&file).unwrap();
    let mut network =
        InferenceNetwork::load(&spec, &tensors, nn::IMAGENET_MEAN, nn::IMAGENET_STD, Device::Cpu).unwrap();
    let golden = finished.golden.unwrap();
    let outputs = network.infer(&[&nn::golden_input(golden.input_seed, 32)], 32).unwrap()[0].heads.concat();
    assert_eq!(outputs.len(), golden.outputs.len());
    assert!(outputs.iter().zip(&golden.outputs).all(|(got, expected)| (got - expected).abs() <= golden.tolerance));
    for is_red in [true, false] {
        let picture = tinted(100, is_red).repeat(32 * 32);
        let tint = &network.infer(&[&picture], 32).unwrap()[0].heads[1];
        assert_eq!(tint[1] > 0.5, is_red, "{tint:?}");
    }
}

#[test]
fn the_same_job_gives_the_same_weights() {
    let tmp = pictures(40);
    let digest = |seed| finished(events(job(&tmp, |recipe| recipe.seed = seed))).weights_digest;
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
}

#[test]
fn a_frozen_stage_leaves_the_body_and_a_larger_stage_goes_on_from_it() {
    let tmp = pictures(40);
    let stage =
        |epochs, image_size_px, freeze_body| v1::Stage { epochs, image_size_px, max_learning_rate: 1e-3, freeze_body };
    let first = finished(events(job(&tmp, |recipe| recipe.stages = vec![stage(1, 32, false)])));
    let kept = tmp.path().join("first.safetensors");
    fs::rename(&first.weights_file, &kept).unwrap();
    let mut next = job(&tmp, |recipe| recipe.stages = vec![stage(1, 32, true), stage(1, 64, true)]);
    next.warm_start_file = kept.to_str().unwrap().to_owned();
    let second = finished(events(next));
    assert_eq!(second.preprocessing.unwrap().image_size_px, 64);
    let (before, after) =
        (nn::read_weights(&kept).unwrap(), nn::read_weights(Path::new(&second.weights_file)).unwrap());
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old == new, !old.name.starts_with("head"), "{}", old.name);
    }
}

#[test]
fn what_cannot_be_trained_on_fails_with_its_kind_and_its_report() {
    let tmp = pictures(40);
    fs::write(tmp.path().join("7.png"), "no picture").unwrap();
    fs::write(tmp.path().join("8.png"), "no picture").unwrap();
    fs::write(tmp.path().join("9.png"), "no picture").unwrap();
    let events_of = |change: fn(&mut Job)| {
        let mut job = job(&tmp, |_| ());
        change(&mut job);
        events(job)
    };
    let bad = events_of(|_| ());
    assert!(bad.iter().any(|event| matches!(event, Event::Data(report) if report.rejected["unreadable_image"] == 3)));
    let (kind, message) = failed(bad);
    assert!(kind == FailureKind::BadData && message.contains("3 of 40 rows are unusable"), "{message}");

    let (kind, message) = failed(events_of(|job| job.recipe = None));
    assert!(kind == FailureKind::BadRecipe && message.contains("recipe.heads"), "{message}");
    let (kind, message) = failed(events_of(|job| job.roots = vec!["/nowhere".to_owned()]));
    assert!(kind == FailureKind::Internal && message.contains("/nowhere"), "{message}");
    let (kind, message) = failed(events_of(|job| job.device = "cuda:99".to_owned()));
    assert!(kind == FailureKind::Internal && message.contains("cuda:99"), "{message}");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let tmp = pictures(40);
    let stranger =
        TensorData { name: "stranger".to_owned(), shape: vec![1], dtype: nn::Dtype::F32, bytes: vec![0; 4].into() };
    let file = tmp.path().join("w.safetensors");
    nn::write_safetensors(&file, &[stranger]).unwrap();
    let mut job = job(&tmp, |_| ());
    job.torchvision_file = file.to_str().unwrap().to_owned();
    let (kind, message) = failed(events(job));
    assert!(kind == FailureKind::BadRecipe && message.contains("no tensor of"), "{message}");
}

#[test]
fn a_loss_that_is_no_number_is_a_divergence_with_its_place() {
    let tmp = pictures(40);
    // Each step makes the weights some hundred times as large, and flips their signs.
    let explosive = |recipe: &mut v1::Recipe| {
        recipe.stages[0].max_learning_rate = 10.0;
        recipe.stages[0].epochs = 60;
        recipe.weight_decay = Some(9.9);
    };
    let (kind, message) = failed(events(job(&tmp, explosive)));
    assert_eq!(kind, FailureKind::Diverged, "{message}");
    assert!(message.contains("stage 1, epoch"), "{message}");
}

#[test]
fn a_cancelled_job_stops_while_it_reads_and_while_it_trains() {
    let tmp = pictures(40);
    assert_eq!(failed(cancellable(job(&tmp, |_| ()), &AtomicBool::new(true))).0, FailureKind::Cancelled);

    /// Cancels at the first reported step.
    struct AtFirstStep(Arc<AtomicBool>, Vec<u8>);
    impl Write for AtFirstStep {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Ok(Some(WorkerEvent { event: Some(Event::Progress(progress)) })) = read_frame(&mut &*bytes) {
                self.0.store(progress.stage > 0, Ordering::Relaxed);
            }
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let mut output = AtFirstStep(Arc::clone(&cancelled), Vec::new());
    let error = work(job(&tmp, |recipe| recipe.stages[0].epochs = 10_000), &mut output, &cancelled).unwrap_err();
    assert!(matches!(error, TrainingError::Cancelled), "{error}");
}
