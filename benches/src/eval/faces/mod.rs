//! Measures a fresh server with the published models beside the packages that people use today: the suite `faces`. One
//! file per part; each returns rows, and figures for the page.

mod attributes;
mod detection;
mod groups;
mod hostile;
mod identities;
mod judged;
mod large;
mod pipeline;
mod pixels;
pub(super) mod predicting;
mod start;
mod upside;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use visage::cli::failure::Usage;

use super::{Findings, table::FaceTable};
use crate::{peers::PeerArgs, server::ServerProcess};

pub(super) const SUITE: &str = "faces";

/// The suite's options beside the folder.
#[derive(Args, Debug)]
#[command(next_help_heading = "Suite faces")]
pub(super) struct FacesArgs {
    /// The folder of the published weights; deploy/fetch_weights.py fetches and prints it.
    #[arg(long, value_name = "FOLDER", env = "VISAGE_WEIGHTS")]
    weights: Option<PathBuf>,
    /// Only these parts; without it, all. May be given more than once.
    #[arg(long, value_enum)]
    part: Vec<Part>,
}

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From a start on an empty folder to the first answer.
    Start,
    /// Age, gender, abstention and groups on the `valid` part.
    Attributes,
    /// Boxes and landmarks.
    Detection,
    /// Separating people.
    Identities,
    /// The same faces in photos of many megapixels.
    Large,
    /// People upside down.
    Upside,
    /// Photos per second, and where the time goes.
    Pipeline,
    /// From a large photo to the network's input.
    Pixels,
    /// Mutated images.
    Hostile,
}

/// The state that every part shares.
struct Setup<'a> {
    server: ServerProcess,
    peers: &'a PeerArgs,
    weights: &'a Path,
    data: &'a Path,
    table: &'a FaceTable,
}

/// Runs the suite, or the requested parts.
pub(super) async fn measure(
    args: &FacesArgs,
    peers: &PeerArgs,
    data: &Path,
    table: &FaceTable,
) -> anyhow::Result<Findings> {
    let Some(weights) = &args.weights else {
        return Err(Usage(
            "--weights (or VISAGE_WEIGHTS) must name the published weights; `make eval` sets it".to_owned(),
        )
        .into());
    };
    if !peers.are_here() {
        println!("no --python: what peers would answer is left out");
    }
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let (server, started) = start::measure(folder.path(), weights, table).await?;
    let mut setup = Setup { server, peers, weights, data, table };
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for part in Part::value_variants() {
        if !args.part.is_empty() && !args.part.contains(part) {
            continue;
        }
        let found = match part {
            Part::Start => Findings { rows: started.clone(), figures: Vec::new() },
            Part::Attributes => attributes::measure(&mut setup).await?,
            Part::Detection => detection::measure(&mut setup).await?,
            Part::Identities => identities::measure(&mut setup).await?,
            Part::Large => large::measure(&mut setup).await?,
            Part::Upside => upside::measure(&mut setup).await?,
            Part::Pipeline => pipeline::measure(&mut setup).await?,
            Part::Pixels => pixels::measure(&setup).await?,
            Part::Hostile => hostile::measure(&mut setup).await?,
        };
        rows.extend(found.rows);
        figures.extend(found.figures);
    }
    setup.server.stop().await?;
    Ok(Findings { rows, figures })
}
