//! Times the whole pipeline, from the JPEG to attributes and embedding, beside one of the same networks in Python, and
//! the stages of one photo.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use visage::{cli::output, nn, proto::v1};

use super::{Findings, SUITE, Setup, predicting::predict_all};
use crate::evidence::{Bar, Row, median};

const N_WARM: usize = 50;
const N_TIMED: usize = 500;
const N_PROFILED: usize = 100;
/// How often both sides are timed, alternating.
const N_ROUNDS: usize = 2;

#[derive(Serialize)]
struct PipelineRequest<'a> {
    images: &'a [PathBuf],
    weights: &'a Path,
    repeat: usize,
    threads: usize,
    descriptor_onnx: &'a Path,
}

#[derive(Serialize)]
struct OnnxRequest<'a> {
    safetensors: &'a Path,
    out: &'a Path,
}

#[derive(Deserialize)]
struct PeerFigures {
    images_per_second: f64,
    /// Mean times by stage.
    stages_ms: serde_json::Map<String, serde_json::Value>,
}

/// Runs the part.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let photos: Vec<PathBuf> = setup.table.valid().iter().take(N_TIMED).map(|face| face.path.clone()).collect();
    if photos.is_empty() {
        println!("no row of faces.csv has the split `valid`: the pipeline is left out");
        return Ok(Findings::default());
    }
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let n_threads = std::thread::available_parallelism()?.get();
    let onnx = descriptor_onnx(setup, folder.path()).await?;
    let request = || v1::PredictRequest { return_embedding: true, ..v1::PredictRequest::default() };
    predict_all(&mut setup.server.clients, photos.iter().take(N_WARM).cloned().collect(), request(), "warming up")
        .await?;
    let (mut ours, mut theirs, mut stages) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..N_ROUNDS {
        let started = Instant::now();
        predict_all(&mut setup.server.clients, photos.clone(), request(), "the pipeline").await?;
        ours.push(photos.len() as f64 / started.elapsed().as_secs_f64());
        if let Some(descriptor_onnx) = &onnx {
            let weights = setup.weights;
            let request = PipelineRequest { images: &photos, weights, repeat: 1, threads: n_threads, descriptor_onnx };
            let what = ("facenet-pytorch and ONNX Runtime", 1);
            let figures =
                setup.peers.run_script::<PeerFigures>("peers/faces.py", &["pipeline"], &request, what).await?;
            for figures in figures.into_iter().flatten() {
                theirs.push(figures.images_per_second);
                let stage = |(name, ms): (&String, &serde_json::Value)| {
                    format!("{name} {:.1}", ms.as_f64().unwrap_or(f64::NAN))
                };
                stages = figures.stages_ms.iter().map(stage).collect::<Vec<_>>().join(", ");
            }
        }
    }
    let mut row = Row::new(SUITE, "pipeline.throughput", median(&mut ours), "images/s");
    if !theirs.is_empty() {
        let what = "facenet-pytorch and ONNX Runtime in Python";
        row = row.versus(what, median(&mut theirs)).bar(Bar::AtLeast(2.0));
        row = row.note(format!("{} photos, {N_ROUNDS} rounds by turns; its stages in ms: {stages}", photos.len()));
    }
    let mut rows = vec![row];
    rows.extend(profile(setup, &photos).await?);
    Ok(Findings { rows, figures: Vec::new() })
}

/// Converts the published descriptor for ONNX Runtime; `None` without a Python.
async fn descriptor_onnx(setup: &Setup<'_>, folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !setup.peers.are_here() {
        return Ok(None);
    }
    let published = setup.weights.join("descriptor").join("dlib_face_recognition_resnet_model_v1.dat");
    let (safetensors, out) = (folder.join("descriptor.safetensors"), folder.join("descriptor.onnx"));
    nn::write_safetensors(&safetensors, &nn::read_weights(&published)?)?;
    let request = OnnxRequest { safetensors: &safetensors, out: &out };
    let what = ("writing the descriptor as ONNX", 1);
    setup.peers.run_script::<serde_json::Value>("peers/faces.py", &["descriptor-onnx"], &request, what).await?;
    Ok(Some(out))
}

/// Times the stages of the pipeline, one photo at a time.
async fn profile(setup: &mut Setup<'_>, photos: &[PathBuf]) -> anyhow::Result<Vec<Row>> {
    let progress = output::bar(photos.len().min(N_PROFILED) as u64, "one at a time");
    let mut timings = Vec::new();
    for path in photos.iter().take(N_PROFILED) {
        let image = tokio::fs::read(path).await.with_context(|| path.display().to_string())?.into();
        let request = v1::PredictRequest { image, return_embedding: true, ..v1::PredictRequest::default() };
        timings.extend(setup.server.clients.visage.predict(request).await?.into_inner().timing);
        progress.inc(1);
    }
    progress.finish_and_clear();
    type Stage = fn(&v1::Timing) -> Option<prost_types::Duration>;
    let stages: [(&str, Stage); 7] = [
        ("decode", |t| t.decode),
        ("detection", |t| t.detection),
        ("alignment", |t| t.alignment),
        ("queue", |t| t.queue),
        ("inference", |t| t.inference),
        ("embedding", |t| t.embedding),
        ("total", |t| t.total),
    ];
    let rows = stages.into_iter().map(|(name, stage)| {
        let ms = |d: prost_types::Duration| d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6;
        let mut spent: Vec<f64> = timings.iter().filter_map(|timing| stage(timing).map(ms)).collect();
        Row::new(SUITE, format!("pipeline.{name}"), median(&mut spent), "ms")
            .note(format!("one photo at a time, median of {}", spent.len()))
    });
    Ok(rows.collect())
}
