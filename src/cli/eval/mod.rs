//! `visage eval`: how good a model is, on an evaluation folder, through a real server.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;

use super::{
    evidence::{Bar, Row, median, report},
    local::LocalServer,
    output,
};
use crate::proto::v1::{self, prediction::Result as Answer, watch_training_run_response::Event};

const SUITE: &str = "faces";

/// Trains a model on the `train` part of an evaluation folder, and measures it on the `valid` part.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage eval --data path/to/folder --json target/evidence/faces.json")]
pub(super) struct EvalArgs {
    /// What to evaluate; there is one suite: faces.
    #[arg(long, default_value = SUITE, value_parser = [SUITE])]
    suite: String,
    /// A folder with faces.csv (path,age,gender,race,split) and the images it names, and optionally identities/.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Writes the rows as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passes over the training part.
    #[arg(long, default_value_t = 3)]
    epochs: i32,
    /// Side of the network's input in pixels.
    #[arg(long, default_value_t = 64)]
    size: i32,
    /// The one-cycle's peak learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Images in a step.
    #[arg(long, default_value_t = 32)]
    batch_size: i32,
    /// Dropout of the head.
    #[arg(long, default_value_t = 0.2)]
    dropout: f64,
}

/// Runs the suite; `false` when a bar was missed.
pub(super) async fn run(args: EvalArgs) -> anyhow::Result<bool> {
    let data = args.data.canonicalize().with_context(|| args.data.display().to_string())?;
    let table = FaceTable::read(&data)?;
    let mut server = LocalServer::start(vec![data.clone()]).await?;
    let trained = train(&mut server, &data, &args, &table).await?;
    let mut rows = trained;
    rows.extend(predict(&mut server, &data, &table).await?);
    rows.extend(identities(&mut server, &data).await?);
    server.stop().await?;
    report(&rows, args.json.as_deref())
}

/// A face of the folder's table.
struct Face {
    path: String,
    age: Option<f64>,
    gender: Option<String>,
    is_valid: bool,
}

struct FaceTable {
    faces: Vec<Face>,
    has_age: bool,
    has_gender: bool,
}

impl FaceTable {
    fn read(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("faces.csv");
        let mut reader = csv::Reader::from_path(&path).with_context(|| path.display().to_string())?;
        let headers = reader.headers()?.clone();
        let column = |name: &str| headers.iter().position(|h| h == name);
        let path_at = column("path").context("faces.csv has no column `path`")?;
        let (age_at, gender_at, split_at) = (column("age"), column("gender"), column("split"));
        let mut faces = Vec::new();
        for row in reader.records() {
            let row = row?;
            let cell = |at: Option<usize>| at.and_then(|at| row.get(at)).filter(|cell| !cell.is_empty());
            faces.push(Face {
                path: row.get(path_at).unwrap_or_default().to_owned(),
                age: cell(age_at).and_then(|age| age.parse().ok()),
                gender: cell(gender_at).map(str::to_owned),
                is_valid: cell(split_at) == Some("valid"),
            });
        }
        if age_at.is_none() && gender_at.is_none() {
            bail!("faces.csv has neither a column `age` nor one `gender`: there is nothing to learn");
        }
        Ok(Self { faces, has_age: age_at.is_some(), has_gender: gender_at.is_some() })
    }

    fn median_train_age(&self) -> Option<f64> {
        let mut ages: Vec<f64> = self.faces.iter().filter(|f| !f.is_valid).filter_map(|f| f.age).collect();
        (!ages.is_empty()).then(|| median(&mut ages))
    }
}

async fn train(server: &mut LocalServer, data: &Path, args: &EvalArgs, table: &FaceTable) -> anyhow::Result<Vec<Row>> {
    let head = |name: &str, kind| v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() };
    let mut heads = Vec::new();
    if table.has_age {
        heads.push(head("age", v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() })));
    }
    if table.has_gender {
        let mut gender = head("gender", v1::head::Kind::Classification(v1::ClassificationHead::default()));
        // Ages are in years and cross entropy below one: without a weight the labels would hardly count.
        gender.loss_weight = Some(3.0);
        heads.push(gender);
    }
    let stage =
        v1::Stage { epochs: args.epochs, image_size_px: args.size, max_learning_rate: args.lr, freeze_body: false };
    let recipe = v1::Recipe {
        architecture: v1::Architecture::Resnet34.into(),
        heads,
        stages: vec![stage],
        batch_size: args.batch_size,
        dropout: Some(args.dropout),
        seed: 1,
        ..v1::Recipe::default()
    };
    let csv = v1::CsvTable { path: data.join("faces.csv").to_string_lossy().into_owned(), ..v1::CsvTable::default() };
    let request = v1::TrainRequest {
        model: "models/face".to_owned(),
        recipe: Some(recipe),
        sources: vec![v1::DataSource { source: Some(v1::data_source::Source::Csv(csv)) }],
        request_id: String::new(),
    };
    let started = Instant::now();
    let progress = output::bar(0, "training");
    let mut speeds = Vec::new();
    let each = |event: &v1::WatchTrainingRunResponse| match &event.event {
        Some(Event::Progress(p)) if p.epoch > 0 => {
            let steps_done = i64::from(p.epoch - 1) * i64::from(p.n_steps) + i64::from(p.step);
            progress.set_length((i64::from(p.n_epochs) * i64::from(p.n_steps)).unsigned_abs());
            progress.set_position(steps_done.unsigned_abs());
            let metric = p.metrics.get("age.mae").map(|m| format!(", age.mae {m:.2}")).unwrap_or_default();
            progress.set_message(format!("training, loss {:.3}{metric}, {:.0} img/s", p.loss, p.images_per_second));
            if p.step > 1 {
                speeds.push(p.images_per_second);
            }
        }
        Some(Event::Data(report)) => {
            let rejected: i64 = report.rejected.values().sum();
            progress.println(format!(
                "{} training rows, {} validation rows, {rejected} left out",
                report.train, report.valid
            ));
        }
        _ => {}
    };
    let ended = server.train(request, each).await?;
    progress.finish_and_clear();
    let mut rows = vec![
        Row::new(SUITE, "train.minutes", started.elapsed().as_secs_f64() / 60.0, "min").bar(Bar::AtMost(20.0)),
        Row::new(SUITE, "train.throughput", median(&mut speeds), "images/s"),
    ];
    for (name, value) in &ended.metrics {
        rows.push(Row::new(SUITE, format!("run.{name}"), *value, "").note("as the run measured it itself"));
    }
    Ok(rows)
}

/// Predicts every validation photo over one stream and compares with its labels.
async fn predict(server: &mut LocalServer, data: &Path, table: &FaceTable) -> anyhow::Result<Vec<Row>> {
    let valid: Vec<&Face> = table.faces.iter().filter(|f| f.is_valid).collect();
    if valid.is_empty() {
        println!("no row of faces.csv has the split `valid`: the run's own figures stand alone");
        return Ok(Vec::new());
    }
    let progress = output::bar(valid.len() as u64, "predicting");
    let requests: Vec<PathBuf> = valid.iter().map(|f| data.join(&f.path)).collect();
    let stream = futures::stream::iter(requests).then(|path| async move {
        // A photo that cannot be read is sent as nothing, and counted as not answered.
        let image = tokio::fs::read(&path).await.unwrap_or_default();
        let request = v1::PredictRequest { model: "models/face".to_owned(), image: image.into(), ..Default::default() };
        v1::StreamPredictRequest { request: Some(request), correlation_id: String::new() }
    });
    let mut answers = server.clients.visage.stream_predict(stream).await?.into_inner();
    let (mut errors, mut baseline, mut inside, mut with_interval) = (Vec::new(), Vec::new(), 0, 0);
    let (mut right, mut judged, mut answered) = (0, 0, 0);
    let median = table.median_train_age();
    for face in &valid {
        let Some(answer) = answers.message().await? else { bail!("the stream of answers ended early") };
        progress.inc(1);
        let Some(v1::stream_predict_response::Result::Response(response)) = answer.result else { continue };
        if response.abstained {
            continue;
        }
        answered += 1;
        for prediction in response.predictions {
            match (prediction.result, prediction.head.as_str()) {
                (Some(Answer::Regression(r)), "age") => {
                    let Some(age) = face.age else { continue };
                    errors.push((r.value - age).abs());
                    baseline.extend(median.map(|m| (m - age).abs()));
                    if let (Some(lower), Some(upper)) = (r.lower, r.upper) {
                        with_interval += 1;
                        inside += usize::from((lower..=upper).contains(&age));
                    }
                }
                (Some(Answer::Classification(c)), "gender") => {
                    let Some(gender) = &face.gender else { continue };
                    judged += 1;
                    right += usize::from(c.label == *gender);
                }
                _ => {}
            }
        }
    }
    progress.finish_and_clear();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut rows = vec![Row::new(SUITE, "answered", answered as f64 / valid.len() as f64, "")];
    if !errors.is_empty() {
        let rmse = mean(&errors.iter().map(|e| e * e).collect::<Vec<_>>()).sqrt();
        let mut mae = Row::new(SUITE, "age.mae", mean(&errors), "years")
            .note(format!("{} faces of the valid part, JPEG in, over the wire", errors.len()));
        if !baseline.is_empty() {
            mae = mae.versus("predicting the train median", mean(&baseline)).bar(Bar::AtMost(0.6));
        }
        rows.extend([mae, Row::new(SUITE, "age.rmse", rmse, "years")]);
    }
    if judged > 0 {
        rows.push(Row::new(SUITE, "gender.accuracy", right as f64 / judged as f64, ""));
    }
    if with_interval > 0 {
        rows.push(
            Row::new(SUITE, "age.coverage90", inside as f64 / with_interval as f64, "")
                .note("share of truths inside the interval of nominal coverage 0.9"),
        );
    }
    Ok(rows)
}

/// How well the model's embedding tells people apart, where the folder has identities.
async fn identities(server: &mut LocalServer, data: &Path) -> anyhow::Result<Vec<Row>> {
    let folder = data.join("identities");
    if !folder.is_dir() {
        println!("no identities/ in the folder: left out");
        return Ok(Vec::new());
    }
    let request = v1::CreateCollectionRequest {
        collection_id: "identities".to_owned(),
        embedding_space: "models/face@champion".to_owned(),
        ..v1::CreateCollectionRequest::default()
    };
    server.clients.faces.create_collection(request).await?;
    let mut person_of = BTreeMap::new();
    let files: Vec<PathBuf> = walkdir::WalkDir::new(&folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect();
    for (i, path) in files.iter().enumerate() {
        let person = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let request = v1::EnrollFaceRequest {
            parent: "collections/identities".to_owned(),
            face_id: format!("f{i}"),
            source: Some(v1::enroll_face_request::Source::Image(std::fs::read(path)?.into())),
            ..v1::EnrollFaceRequest::default()
        };
        // What is no photo is no face.
        if server.clients.faces.enroll_face(request).await.is_ok() {
            person_of.insert(format!("collections/identities/faces/f{i}"), person);
        }
    }
    let (mut genuine, mut impostor, mut nearest_right) = (Vec::new(), Vec::new(), 0);
    for (name, person) in &person_of {
        let request = v1::FindSimilarRequest {
            collection: "collections/identities".to_owned(),
            query: Some(v1::find_similar_request::Query::Face(name.clone())),
            k: 1000,
            exact: true,
            ..v1::FindSimilarRequest::default()
        };
        let found = server.clients.visage.find_similar(request).await?.into_inner().matches;
        for (rank, hit) in found.iter().enumerate() {
            let same = hit.face.as_ref().and_then(|f| person_of.get(&f.name)) == Some(person);
            if same {
                genuine.push(hit.score)
            } else {
                impostor.push(hit.score)
            }
            nearest_right += usize::from(rank == 0 && same);
        }
    }
    let note = format!("{} photos; this model was trained for age, not for identity", person_of.len());
    Ok(vec![
        Row::new(SUITE, "identity.auc", auc(&mut genuine, &mut impostor), "").note(note),
        Row::new(SUITE, "identity.tmr_at_fmr_1e-2", tmr_at_fmr(&genuine, &mut impostor, 0.01), "").note(format!(
            "{} genuine and {} impostor pairs",
            genuine.len(),
            impostor.len()
        )),
        Row::new(SUITE, "identity.nearest", nearest_right as f64 / person_of.len().max(1) as f64, ""),
    ])
}

/// The share of genuine pairs above the lowest threshold that at most `fmr` of the impostor pairs exceed.
fn tmr_at_fmr(genuine: &[f32], impostor: &mut [f32], fmr: f64) -> f64 {
    impostor.sort_by(|a, b| b.total_cmp(a));
    let threshold = impostor.get((fmr * impostor.len() as f64) as usize).copied().unwrap_or(f32::NEG_INFINITY);
    genuine.iter().filter(|score| **score > threshold).count() as f64 / genuine.len().max(1) as f64
}

/// The chance that a genuine pair scores above an impostor pair, ties counted half (Mann and Whitney 1947).
fn auc(genuine: &mut [f32], impostor: &mut [f32]) -> f64 {
    impostor.sort_by(f32::total_cmp);
    let wins = |g: &f32| {
        let below = impostor.partition_point(|i| i < g);
        let not_above = impostor.partition_point(|i| i <= g);
        (below + not_above) as f64 / 2.0
    };
    genuine.iter().map(wins).sum::<f64>() / (genuine.len() * impostor.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::{auc, tmr_at_fmr};

    #[test]
    fn auc_counts_pairs_in_order() {
        assert_eq!(auc(&mut [0.9, 0.8], &mut [0.1, 0.2]), 1.0);
        assert_eq!(auc(&mut [0.1], &mut [0.9]), 0.0);
        assert_eq!(auc(&mut [0.5], &mut [0.5]), 0.5);
    }

    #[test]
    fn the_threshold_lets_no_more_impostors_through_than_it_may() {
        let mut impostor: Vec<f32> = (0..100).map(|i| i as f32 / 100.0).collect();
        // One in a hundred, 0.99, may pass; 0.98 must not.
        assert_eq!(tmr_at_fmr(&[0.985, 0.98, 0.5, 1.0], &mut impostor, 0.01), 0.5);
        assert_eq!(tmr_at_fmr(&[0.1], &mut [], 0.01), 1.0);
    }
}
