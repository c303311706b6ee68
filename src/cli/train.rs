//! `visage train`: starts a training run and watches it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::{
    connection::Remote,
    failure::Usage,
    heads::{Architecture, HeadArgs},
    models, names,
    output::{self, print_line},
    watching::{OnInterrupt, watch},
};
use crate::proto::v1::{self, data_source::Source, recipe::WarmStart};

/// The default stage: half an hour for ten thousand photos on two cores.
pub(super) const DEFAULT_STAGE: v1::Stage =
    v1::Stage { epochs: 8, image_size_px: 64, max_learning_rate: 2e-3, freeze_body: false };

/// Trains a model on labelled photos and watches it; Ctrl-C cancels the run.
///
/// The data must be on the server's machine, below one of its training roots. The first version of a model becomes its
/// champion; later ones wait for `--promote` or `visage models promote`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage train --model face --utkface photos/UTKFace
  visage train --model face --csv photos/faces.csv --regression age:years --classification smoker=no,yes \\
    --epochs 20 --image-size 128 --promote
  visage train --model face --csv photos/more.csv --from face@champion --epochs 3 --lr 0.0002

A recipe file has the JSON form of visage.v1.Recipe; options on the command line win over it. That of a version:
  visage models show face/2 --json | jq .provenance.recipe > recipe.json")]
pub(super) struct TrainArgs {
    /// The model of the new version; created if absent.
    #[arg(long, short)]
    model: String,
    /// A folder on the server's machine with UTKFace file names: AGE_GENDER_RACE_DATE.jpg. May be given more than once.
    #[arg(long, value_name = "FOLDER", required_unless_present = "csv")]
    utkface: Vec<PathBuf>,
    /// A table on the server's machine with a column `path`, one for every head, and optionally `split`.
    #[arg(long, value_name = "FILE")]
    csv: Vec<PathBuf>,
    #[command(flatten)]
    heads: HeadArgs,
    /// A recipe to start from.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// The network's body [default: that of --from, or resnet34].
    #[arg(long, value_enum)]
    architecture: Option<Architecture>,
    /// Passes over the photos [default: 8].
    #[arg(long)]
    epochs: Option<i32>,
    /// Side of the network's input in pixels [default: the recipe's, that of --from, or 64].
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<i32>,
    /// The peak of the one-cycle learning rate [default: 0.002].
    #[arg(long)]
    lr: Option<f64>,
    /// Photos per step [default: 32].
    #[arg(long)]
    batch_size: Option<i32>,
    /// Dropout before the head's layers, 0 to below 1.
    #[arg(long)]
    dropout: Option<f64>,
    /// The seed of all randomness; the same seed repeats the run on the same machine.
    #[arg(long)]
    seed: Option<u64>,
    /// Starts from this version's weights instead of random ones.
    #[arg(long, value_name = "VERSION", conflicts_with = "weights")]
    from: Option<String>,
    /// Starts from a torchvision weights file on the server's machine.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// The share of unreadable photos and rows above which the run fails, 0 to 1.
    #[arg(long, value_name = "SHARE")]
    max_bad: Option<f64>,
    /// Makes the new version the champion at the end.
    #[arg(long, conflicts_with = "detach")]
    promote: bool,
    /// Starts the run and returns.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    pub(super) remote: Remote,
}

impl TrainArgs {
    fn request(&self) -> anyhow::Result<v1::TrainRequest> {
        let utkface = self.utkface.iter().map(|path| Ok(Source::Utkface(v1::UtkFaceFolder { path: on_server(path)? })));
        let csv = self
            .csv
            .iter()
            .map(|path| Ok(Source::Csv(v1::CsvTable { path: on_server(path)?, ..v1::CsvTable::default() })));
        let sources = utkface.chain(csv).map(|source: anyhow::Result<_>| Ok(v1::DataSource { source: Some(source?) }));
        Ok(v1::TrainRequest {
            model: names::model(&self.model),
            recipe: Some(self.recipe()?),
            sources: sources.collect::<anyhow::Result<_>>()?,
            request_id: String::new(),
        })
    }

    fn recipe(&self) -> anyhow::Result<v1::Recipe> {
        let mut recipe = match &self.recipe {
            None => v1::Recipe::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                output::from_json(&text).with_context(|| format!("{}: not a recipe", file.display()))?
            }
        };
        let heads = self.heads.heads()?;
        if !heads.is_empty() {
            recipe.heads = heads;
        } else if recipe.heads.is_empty() {
            recipe.heads = vec![v1::Head::regression("age", "years")];
        }
        if let Some(architecture) = self.architecture {
            recipe.architecture = v1::Architecture::from(architecture).into();
        }
        if recipe.stages.is_empty() {
            recipe.stages.push(DEFAULT_STAGE);
        }
        if self.epochs.is_some() || self.image_size.is_some() || self.lr.is_some() {
            if recipe.stages.len() > 1 {
                bail!(Usage(
                    "the recipe has several stages: change --epochs, --image-size and --lr in the file".to_owned()
                ));
            }
            for stage in &mut recipe.stages {
                stage.epochs = self.epochs.unwrap_or(stage.epochs);
                stage.image_size_px = self.image_size.unwrap_or(stage.image_size_px);
                stage.max_learning_rate = self.lr.unwrap_or(stage.max_learning_rate);
            }
        }
        recipe.batch_size = self.batch_size.unwrap_or(recipe.batch_size);
        recipe.dropout = self.dropout.or(recipe.dropout);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.max_bad_fraction = self.max_bad.or(recipe.max_bad_fraction);
        if let Some(version) = &self.from {
            recipe.warm_start = Some(WarmStart::Version(names::model(version)));
        }
        if let Some(weights) = &self.weights {
            recipe.warm_start = Some(WarmStart::WeightsPath(on_server(weights)?));
        }
        Ok(recipe)
    }
}

/// Returns a path for the server: absolute if the path exists here.
///
/// The server often runs on this machine, but in another folder.
fn on_server(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.into_os_string().into_string().map_err(|path| Usage(format!("{} is not UTF-8", path.display())).into())
}

/// Runs the command; returns false when the run did not succeed.
pub(super) async fn run(args: TrainArgs) -> anyhow::Result<bool> {
    let mut request = args.request()?;
    let mut server = args.remote.connect().await?;
    if let (Some(version), None, None) = (&args.from, args.image_size, &args.recipe) {
        // Continued training reads photos of the same size.
        let name = v1::GetModelVersionRequest { name: names::model(version) };
        let parent = server.models.get_model_version(args.remote.request(name)).await?.into_inner();
        for stage in request.recipe.iter_mut().flat_map(|recipe| &mut recipe.stages) {
            stage.image_size_px = parent.image_size_px;
        }
    }
    let name = server.train(args.remote.request(request)).await?;
    if args.detach {
        let request = v1::GetTrainingRunRequest { name };
        let run = server.training.get_training_run(args.remote.request(request)).await?.into_inner();
        output::show(args.remote.json, &run, |run| format!("{}\nfollow it: visage runs watch {}", run.name, run.name))?;
        return Ok(true);
    }
    if !args.remote.json {
        print_line!("{name}")?;
    }
    let Some(run) = watch(&args.remote, &mut server, &name, OnInterrupt::Cancel).await? else { return Ok(false) };
    if run.state() != v1::RunState::Succeeded {
        return Ok(false);
    }
    if args.promote {
        let model = models::promote(&args.remote, &mut server, &run.version, "champion", None).await?;
        output::show(args.remote.json, &model, |model| format!("{}@champion is {}", model.name, run.version))?;
    }
    Ok(true)
}
