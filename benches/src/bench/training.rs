//! Measures the images per second of a whole run beside a plain PyTorch loop: the suite `training`.
//!
//! The peer decodes its images into memory before its clock starts, as the run has done by its second epoch. So both
//! sides are timed on the same work: augment, normalise, forward, loss, backward, optimiser step.

use std::path::Path;

use anyhow::bail;
use serde::Deserialize;
use visage::{
    cli::{output, watching},
    proto::v1::{self, watch_training_run_response::Event},
};

use super::{BenchArgs, photos, train_request};
use crate::{
    evidence::{Bar, Row, median},
    training_server::TrainingServer,
};

const SUITE: &str = "training";
const IMAGE_SIZE_PX: i32 = 64;
const BATCH_SIZE: i32 = 64;
const N_PHOTOS: u64 = 1280;
const N_EPOCHS: i32 = 3;
/// How often each side is measured. They alternate, so that a change of the machine's pace affects both.
const N_ROUNDS: usize = 2;

/// The figures that the peer's script prints.
#[derive(Deserialize)]
struct PeerFigures {
    /// The pace with PyTorch's default memory layout.
    images_per_second: f64,
    /// The pace of the same loop with channels-last tensors.
    images_per_second_channels_last: f64,
}

/// Runs the suite.
pub(super) async fn measure(args: &BenchArgs) -> anyhow::Result<Vec<Row>> {
    let mut server = TrainingServer::start(Vec::new()).await?;
    let folder = server.root().join("photos");
    photos::write_folder(&folder, N_PHOTOS)?;
    let (mut ours, mut plain, mut tuned) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..N_ROUNDS {
        ours.push(run(&mut server, &folder).await?);
        if let Some(figures) = peer(args).await? {
            plain.push(figures.images_per_second);
            tuned.push(figures.images_per_second_channels_last);
        }
    }
    server.stop().await?;
    let what = format!("ResNet34, {IMAGE_SIZE_PX} px, batch {BATCH_SIZE}, f32, median of {N_ROUNDS} runs by turns");
    let name = format!("train.throughput.{IMAGE_SIZE_PX}px");
    let ours = median(&mut ours);
    if plain.is_empty() {
        let note = format!("{what}; the peer is left out: no --python");
        return Ok(vec![Row::new(SUITE, name, ours, "images/s").note(note)]);
    }
    Ok(vec![
        Row::new(SUITE, name.clone(), ours, "images/s")
            .versus("plain PyTorch loop", median(&mut plain))
            .bar(Bar::AtLeast(0.9))
            .note(what.clone()),
        Row::new(SUITE, format!("{name}.channels_last"), ours, "images/s")
            .versus("PyTorch loop, channels-last", median(&mut tuned))
            .note(what),
    ])
}

/// Trains once; returns the median pace after the first epoch, in which caches are filled and kernels planned.
async fn run(server: &mut TrainingServer, folder: &Path) -> anyhow::Result<f64> {
    let stage =
        v1::Stage { epochs: N_EPOCHS, image_size_px: IMAGE_SIZE_PX, max_learning_rate: 1e-3, freeze_body: false };
    let request = train_request(folder, v1::Architecture::Resnet34, stage, BATCH_SIZE);
    let progress = output::bar(0, "a run");
    let mut paces = Vec::new();
    let each = |event: &v1::WatchTrainingRunResponse| {
        if let Some(Event::Progress(p)) = &event.event
            && p.epoch > 0
        {
            watching::advance(&progress, p);
            if p.epoch > 1 && p.step > 1 {
                paces.push(p.images_per_second);
            }
        }
    };
    server.train(request, each).await?;
    progress.finish_and_clear();
    if paces.is_empty() {
        bail!("the run reported no pace after its first epoch");
    }
    Ok(median(&mut paces))
}

/// Runs the peer; `None` without a Python.
async fn peer(args: &BenchArgs) -> anyhow::Result<Option<PeerFigures>> {
    let (size, batch_size) = (IMAGE_SIZE_PX.to_string(), BATCH_SIZE.to_string());
    let arguments = ["--size", &size, "--batch-size", &batch_size];
    let figures = args.peers.run_script("peers/training.py", &arguments, &(), ("the PyTorch loop", 1)).await?;
    Ok(figures.and_then(|figures| figures.into_iter().next()))
}
