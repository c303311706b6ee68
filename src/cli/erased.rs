//! `visage doctor --erased`: looks for what may be left of a deleted face.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    names,
    output::{self, print_line},
};
use crate::{
    app::{App, Call, store_settings},
    config::Config,
    similarity::FaceName,
    store::{self, ErasedFace, SledStore, Store, StoreError},
};

/// The face that was deleted, and what is known of it.
#[derive(Args, Debug)]
pub(super) struct ErasedArgs {
    /// The name of a deleted face: collections/{collection}/faces/{face}.
    #[arg(long, value_name = "NAME")]
    erased: Option<String>,
    /// Its subject.
    #[arg(long, requires = "erased")]
    subject: Option<String>,
    /// A file with its vector, a JSON array of numbers.
    #[arg(long, value_name = "FILE", requires = "erased")]
    vector: Option<PathBuf>,
    /// Its photo, from which the vector is computed as an enrolment does; the collection must still be there. This opens
    /// the folder as a server does.
    #[arg(long, value_name = "FILE", requires = "erased", conflicts_with = "vector")]
    photo: Option<PathBuf>,
}

impl ErasedArgs {
    /// Returns true if a face is given.
    pub(super) fn is_given(&self) -> bool {
        self.erased.is_some()
    }
}

/// A shorter vector has no sixteen bytes of its own.
const MIN_NUMBERS: usize = 8;

/// The vector of a photo is computed by a server in this process, whose threads must end within this time.
const CLOSE_WAIT: Duration = Duration::from_secs(30);

/// Looks through every file of the data folder; returns false when something is found.
pub(super) fn look(args: &ErasedArgs, config: &Config, json: bool) -> anyhow::Result<bool> {
    let name = FaceName::parse("--erased", &names::face(args.erased.as_deref().unwrap_or_default()))?;
    let store_dir = config.data_dir.join("store");
    if !store_dir.is_dir() {
        bail!("there is no store in {}; --data-dir names the data folder", store_dir.display());
    }
    let mut vectors = Vec::new();
    if let Some(file) = &args.vector {
        let named = || file.display().to_string();
        let text = fs::read_to_string(file).with_context(named)?;
        let values: Vec<f32> =
            serde_json::from_str(&text).with_context(|| format!("{}: not a JSON array of numbers", named()))?;
        if values.len() < MIN_NUMBERS {
            bail!("{}: {} numbers are too few to search for", named(), values.len());
        }
        vectors.push(values);
    }
    if args.subject.as_ref().is_some_and(String::is_empty) {
        bail!("--subject must not be empty");
    }
    let face = ErasedFace {
        collection: name.collection.to_string(),
        id: name.face.to_string(),
        subject: args.subject.clone(),
        vectors,
    };
    let mut face = face;
    let mut findings = search(&store_dir, config, &face)?;
    if let Some(file) = &args.photo {
        // Last, because it opens the folder as a server does, which removes what interrupted runs have left.
        face.vectors.push(vector_of(&name, file, config)?);
        for finding in search(&store_dir, config, &face)? {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    if json {
        let found: Vec<_> = findings.iter().map(|f| json!({ "what": f.what, "affects": f.affects })).collect();
        print_line!("{}", json!({ "face": name.to_string(), "findings": found }))?;
    } else {
        for finding in &findings {
            print_line!("found: {}", finding.what)?;
        }
        let looked_for = ["its name", "its id"]
            .into_iter()
            .chain(face.subject.as_ref().map(|_| "its subject"))
            .chain((!face.vectors.is_empty()).then_some("parts of its vector"));
        let looked_for = looked_for.collect::<Vec<_>>().join(", ");
        match findings.len() {
            0 => {
                print_line!("no trace of {name} in {} (searched for: {looked_for})", config.data_dir.display())?;
                print_line!("A name that never existed gives the same answer. Exports elsewhere were not searched.")?;
            }
            n => print_line!("{n} traces of {name} (searched for: {looked_for})")?,
        }
    }
    Ok(findings.is_empty())
}

/// Searches what the store can read, and every file.
fn search(store_dir: &Path, config: &Config, face: &ErasedFace) -> anyhow::Result<Vec<store::Finding>> {
    let progress = output::bar(0, "searching the store");
    let store: Arc<dyn Store> = open(store_dir, config)?;
    let mut findings = store::find_in_store(&*store, face)?;
    drop(store);
    progress.set_message("searching every file");
    findings.extend(store::find_in_files(&config.data_dir, face, |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    })?);
    progress.finish_and_clear();
    Ok(findings)
}

fn open(dir: &Path, config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let until = Instant::now() + CLOSE_WAIT;
    loop {
        match SledStore::open_to_examine(dir, &store_settings(config)) {
            Err(StoreError::Locked { .. }) if Instant::now() < until => thread::sleep(Duration::from_millis(50)),
            opened => return Ok(Arc::new(opened?)),
        }
    }
}

/// Computes the vector of a photo.
fn vector_of(name: &FaceName, photo: &Path, config: &Config) -> anyhow::Result<Vec<f32>> {
    let named = || photo.display().to_string();
    let bytes = fs::read(photo).with_context(named)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let vector = runtime.block_on(async {
        let app = App::open(config, CancellationToken::new()).await?;
        let vector = app.faces.vector_of(&Call::local(), &name.collection, bytes.into()).await;
        app.close(Instant::now() + CLOSE_WAIT).await;
        vector
    });
    runtime.shutdown_timeout(CLOSE_WAIT);
    vector.with_context(named)
}
