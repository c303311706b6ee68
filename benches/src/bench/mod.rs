//! Measures how fast this build is on this machine, one file per suite.
//!
//! A suite compares its figures with others of the same run: machines differ, and only ratios are comparable between
//! them. `photos.rs` draws the photos to send.

mod photos;
mod serve;
mod similar;
mod store;
mod training;
mod vectors;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use visage::proto::v1;

use crate::{evidence::report, peers::PeerArgs};

/// The model that every suite trains.
const MODEL: &str = "models/bench";

/// Measures speed, beside a peer or a baseline of the same run.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage-measure bench --suite serve --json target/evidence/serve.json
  make bench SUITE=training      # installs what the suite compares with, then runs it")]
pub(crate) struct BenchArgs {
    /// The suite to run.
    #[arg(long, value_enum)]
    suite: Suite,
    /// Also writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    peers: PeerArgs,
}

/// A set of measurements.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// The training loop's throughput, beside a plain PyTorch loop.
    Training,
    /// Predict's latency and throughput, idle and while a run trains.
    Serve,
    /// The graph's recall and speed, beside the exact scan.
    Similar,
    /// The cost of durable writes and of deletions, beside a bare loop of writes and syncs.
    Store,
}

/// Creates the request for a run that learns a number from the folder's photos.
fn train_request(folder: &Path, architecture: v1::Architecture, stage: v1::Stage, batch_size: i32) -> v1::TrainRequest {
    let source = v1::UtkFaceFolder { path: folder.to_string_lossy().into_owned() };
    v1::TrainRequest {
        model: MODEL.to_owned(),
        recipe: Some(v1::Recipe {
            architecture: architecture.into(),
            heads: vec![v1::Head::regression("age", "years")],
            stages: vec![stage],
            batch_size,
            ..v1::Recipe::default()
        }),
        sources: vec![v1::DataSource { source: Some(v1::data_source::Source::Utkface(source)) }],
        request_id: String::new(),
    }
}

/// Runs the suite; returns false when a target figure was missed.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<bool> {
    let rows = match args.suite {
        Suite::Training => training::measure(&args).await?,
        Suite::Serve => serve::measure().await?,
        Suite::Similar => similar::measure().await?,
        Suite::Store => store::measure().await?,
    };
    report(&rows, args.json.as_deref())
}
