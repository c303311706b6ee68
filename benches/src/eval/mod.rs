//! Measures how good the answers are, on an evaluation folder, through a real server.
//!
//! There is one module per suite: `faces` measures a fresh server with the published models, beside peers; `training`
//! trains its own model first. They share the folder's table (`table.rs`) and the figures (`metrics.rs`). `charts.rs`
//! and `page.rs` create the page for people.

mod charts;
mod faces;
mod metrics;
mod page;
mod table;
mod training;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use self::{page::Figure, table::FaceTable};
use crate::{
    evidence::{Row, report},
    peers::PeerArgs,
};

/// Measures quality on an evaluation folder, whose format docs/evidence.md describes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage-measure eval --data path/to/folder --weights path/to/weights --page target/evidence/faces.html
  visage-measure eval --data path/to/folder --suite training --epochs 1
  make eval DATA=path/to/folder      # fetches weights and peers, then runs both suites")]
pub(crate) struct EvalArgs {
    /// The suite to run.
    #[arg(long, value_enum, default_value_t = Suite::Faces)]
    suite: Suite,
    /// A folder with faces.csv (path,age,gender,race,split) and the images it names, and optionally identities/.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Also writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page for people: every row, and for the suite faces also distributions, curves, groups and the worst
    /// errors.
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,
    #[command(flatten)]
    faces: faces::FacesArgs,
    #[command(flatten)]
    training: training::TrainingArgs,
    #[command(flatten)]
    peers: PeerArgs,
}

/// A set of measurements.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// The published models on a fresh server: faces, attributes, identity, speed, hostile photos.
    Faces,
    /// A model trained on the folder's `train` part, measured on its `valid` part.
    Training,
}

/// The rows and figures of a suite, or of a part of one.
#[derive(Default)]
struct Findings {
    rows: Vec<Row>,
    figures: Vec<Figure>,
}

/// Runs the suite; returns false when a target figure was missed.
pub(crate) async fn run(args: EvalArgs) -> anyhow::Result<bool> {
    let data = args.data.canonicalize().with_context(|| args.data.display().to_string())?;
    let table = FaceTable::read(&data)?;
    let (suite, found) = match args.suite {
        Suite::Faces => (faces::SUITE, faces::measure(&args.faces, &args.peers, &data, &table).await?),
        Suite::Training => (training::SUITE, training::measure(&args.training, &data, &table).await?),
    };
    if let Some(file) = &args.page {
        page::write(file, suite, &found)?;
    }
    report(&found.rows, args.json.as_deref())
}
