//! Trains a model on the folder's `train` part and measures it on the `valid` part: the suite `training`.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::bail;
use clap::Args;
use visage::{
    cli::{output, watching},
    proto::v1::{self, prediction::Result as Answer, watch_training_run_response::Event},
};

use super::{
    Findings,
    faces::predicting,
    metrics::{PairScores, mean, root_mean_square, share},
    table::{FaceTable, people},
};
use crate::{
    evidence::{Bar, Row, median},
    training_server::TrainingServer,
};

pub(super) const SUITE: &str = "training";
const MODEL: &str = "models/face";

/// The settings of the training run.
#[derive(Args, Debug)]
#[command(next_help_heading = "Suite training")]
pub(super) struct TrainingArgs {
    /// Passes over the training part.
    #[arg(long, default_value_t = 3)]
    epochs: i32,
    /// Side of the network's input in pixels.
    #[arg(long, default_value_t = 64)]
    size: i32,
    /// The one-cycle's peak learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Images per step.
    #[arg(long, default_value_t = 32)]
    batch_size: i32,
    /// Dropout of the head.
    #[arg(long, default_value_t = 0.2)]
    dropout: f64,
}

/// Runs the suite.
pub(super) async fn measure(args: &TrainingArgs, data: &Path, table: &FaceTable) -> anyhow::Result<Findings> {
    if !table.has_age && !table.has_gender {
        bail!("faces.csv has neither a column `age` nor one `gender`: there is nothing to learn");
    }
    let mut server = TrainingServer::start(vec![data.to_owned()]).await?;
    let mut rows = train(&mut server, data, args, table).await?;
    rows.extend(predict(&mut server, table).await?);
    rows.extend(identities(&mut server, data).await?);
    server.stop().await?;
    Ok(Findings { rows, figures: Vec::new() })
}

async fn train(
    server: &mut TrainingServer,
    data: &Path,
    args: &TrainingArgs,
    table: &FaceTable,
) -> anyhow::Result<Vec<Row>> {
    let mut heads = Vec::new();
    if table.has_age {
        heads.push(v1::Head::regression("age", "years"));
    }
    if table.has_gender {
        let mut gender = v1::Head::classification("gender", Vec::new());
        // Ages are in years and cross entropy is below one: without a weight, gender would hardly count.
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
        model: MODEL.to_owned(),
        recipe: Some(recipe),
        sources: vec![v1::DataSource { source: Some(v1::data_source::Source::Csv(csv)) }],
        request_id: String::new(),
    };
    let started = Instant::now();
    let progress = output::bar(0, "training");
    let mut speeds = Vec::new();
    let each = |event: &v1::WatchTrainingRunResponse| match &event.event {
        Some(Event::Progress(p)) if p.epoch > 0 => {
            watching::advance(&progress, p);
            let metric = p.metrics.get("age.mae").map(|m| format!(", age.mae {m:.2}")).unwrap_or_default();
            progress.set_message(format!("training, loss {:.3}{metric}, {:.0} img/s", p.loss, p.images_per_second));
            if p.step > 1 {
                speeds.push(p.images_per_second);
            }
        }
        Some(Event::Data(report)) => progress.println(watching::data(report)),
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

/// Predicts every validation photo over one stream and compares the answers with the labels.
async fn predict(server: &mut TrainingServer, table: &FaceTable) -> anyhow::Result<Vec<Row>> {
    let valid = table.valid();
    if valid.is_empty() {
        println!("no row of faces.csv has the split `valid`: the run's own figures stand alone");
        return Ok(Vec::new());
    }
    let paths = valid.iter().map(|f| f.path.clone()).collect();
    let request = v1::PredictRequest { model: MODEL.to_owned(), ..v1::PredictRequest::default() };
    let answers = predicting::predict_all(&mut server.clients, paths, request, "predicting").await?;
    let (mut errors, mut baseline, mut inside, mut right) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut n_answered, median) = (0, table.median_train_age());
    for (face, answer) in valid.iter().zip(answers) {
        // An unreadable photo is not answered.
        let Ok(response) = answer else { continue };
        if response.abstained {
            continue;
        }
        n_answered += 1;
        for prediction in response.predictions {
            match (prediction.result, prediction.head.as_str()) {
                (Some(Answer::Regression(r)), "age") => {
                    let Some(age) = face.age else { continue };
                    errors.push((r.value - age).abs());
                    baseline.extend(median.map(|m| (m - age).abs()));
                    inside.extend(r.lower.zip(r.upper).map(|(lower, upper)| (lower..=upper).contains(&age)));
                }
                (Some(Answer::Classification(c)), "gender") => {
                    right.extend(face.gender.as_ref().map(|gender| c.label == *gender));
                }
                _ => {}
            }
        }
    }
    let mut rows = vec![Row::new(SUITE, "answered", f64::from(n_answered) / valid.len() as f64, "")];
    if !errors.is_empty() {
        let mut mae = Row::new(SUITE, "age.mae", mean(errors.iter().copied()), "years")
            .note(format!("{} faces of the valid part, JPEG in, over the wire", errors.len()));
        if !baseline.is_empty() {
            mae = mae.versus("predicting the train median", mean(baseline)).bar(Bar::AtMost(0.6));
        }
        rows.extend([mae, Row::new(SUITE, "age.rmse", root_mean_square(errors), "years")]);
    }
    if !right.is_empty() {
        rows.push(Row::new(SUITE, "gender.accuracy", share(right), ""));
    }
    if !inside.is_empty() {
        rows.push(
            Row::new(SUITE, "age.coverage90", share(inside), "")
                .note("share of truths inside the interval of nominal coverage 0.9"),
        );
    }
    Ok(rows)
}

/// Measures how well the model's embedding separates people, by a collection's exact scan; needs `identities/`.
async fn identities(server: &mut TrainingServer, data: &Path) -> anyhow::Result<Vec<Row>> {
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
    for (i, (path, person)) in people(&folder).into_iter().enumerate() {
        let request = v1::EnrollFaceRequest {
            parent: "collections/identities".to_owned(),
            face_id: format!("f{i}"),
            source: Some(v1::enroll_face_request::Source::Image(std::fs::read(path)?.into())),
            ..v1::EnrollFaceRequest::default()
        };
        // A file that is not a photo has no face.
        if server.clients.faces.enroll_face(request).await.is_ok() {
            person_of.insert(format!("collections/identities/faces/f{i}"), person);
        }
    }
    let (mut genuine, mut impostor, mut nearest) = (Vec::new(), Vec::new(), Vec::new());
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
            if same { &mut genuine } else { &mut impostor }.push(f64::from(hit.score));
            if rank == 0 {
                nearest.push(same);
            }
        }
    }
    let scores = PairScores::new(genuine, impostor, share(nearest));
    let note = format!("{} photos; this model was trained for age, not for identity", person_of.len());
    Ok(vec![
        Row::new(SUITE, "identity.auc", scores.auc(), "").note(note),
        Row::new(SUITE, "identity.tmr_at_fmr_1e-2", scores.true_match_rate(0.01), "").note(format!(
            "{} genuine and {} impostor pairs",
            scores.genuine.len(),
            scores.impostor.len()
        )),
        Row::new(SUITE, "identity.nearest", scores.nearest, ""),
    ])
}
