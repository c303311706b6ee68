//! `visage models`: models and their versions.

use clap::{Args, Subcommand};

use super::face_options::by_name;
use super::{
    connection::{Clients, Remote},
    heads::{self, HeadArgs, ImportedArchitecture},
    names, output, pages,
};
use crate::proto::v1;

/// Shows, promotes, loads, imports and deletes model versions.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage models list
  visage models promote face/2 --expect face/1    # only if version 1 answers now
  visage models promote face/1                    # and back")]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
    #[command(flatten)]
    pub(super) remote: Remote,
}

#[derive(Subcommand, Debug)]
enum ModelsCommand {
    /// Lists the models.
    List,
    /// Lists a model's versions.
    Versions {
        /// The model.
        model: String,
    },
    /// Shows a version: its heads, metrics and origin.
    Show {
        /// face for its champion, face@ALIAS, or face/3.
        version: String,
    },
    /// Points an alias at a version: loads it, warms it, and swaps without dropping a request.
    Promote {
        /// For example face/2.
        version: String,
        /// The alias.
        #[arg(long, default_value = "champion")]
        alias: String,
        /// Only if the alias points to this version now; none: only if the alias does not exist.
        #[arg(long, value_name = "VERSION|none")]
        expect: Option<String>,
    },
    /// Loads a version, so that its first answer is fast.
    Load {
        /// For example face/2.
        version: String,
    },
    /// Frees the memory of a version that no alias points at.
    Unload {
        /// For example face/2.
        version: String,
    },
    /// Deletes a version that no alias points at, for good.
    Delete {
        /// For example face/2.
        version: String,
    },
    /// Creates a version from a weights file on the server's machine.
    #[command(after_help = "\
Examples:
  visage models import --model face --weights weights/age.safetensors --architecture resnet34 \\
    --image-size 224 --regression age:years
  visage models import --model mtcnn --weights weights/mtcnn --architecture mtcnn --licence MIT")]
    Import(ImportArgs),
}

#[derive(Args, Debug)]
struct ImportArgs {
    /// The model of the new version.
    #[arg(long, short)]
    model: String,
    /// A weights file or a folder of them, below one of the server's training roots: for a ResNet a safetensors or
    /// PyTorch file; mtcnn: a folder with pnet.pt, rnet.pt and onet.pt; dlib-age-gender: one with age.onnx and
    /// gender.onnx; dlib-face-descriptor: dlib's .dat file.
    #[arg(long, value_name = "PATH")]
    weights: String,
    /// The network of these weights.
    #[arg(long, value_enum)]
    architecture: ImportedArchitecture,
    /// Side of the network's input in pixels, for a ResNet.
    #[arg(long, value_name = "PIXELS", default_value_t = 0, hide_default_value = true)]
    image_size: i32,
    #[command(flatten)]
    heads: HeadArgs,
    /// The version that finds faces, for dlib's networks.
    #[arg(long, value_name = "VERSION")]
    detector: Option<String>,
    /// The version whose embedding is returned with answers, for dlib-age-gender.
    #[arg(long, value_name = "VERSION")]
    embedder: Option<String>,
    /// The weights' licence, as an SPDX expression.
    #[arg(long, default_value = "", hide_default_value = true)]
    licence: String,
    /// Where the weights were published.
    #[arg(long, default_value = "", hide_default_value = true)]
    source: String,
}

/// Runs the command.
pub(super) async fn run(args: ModelsArgs) -> anyhow::Result<bool> {
    let remote = &args.remote;
    let mut server = remote.connect().await?;
    match args.command {
        ModelsCommand::List => list(remote, &server).await?,
        ModelsCommand::Versions { model } => versions(remote, &server, &model).await?,
        ModelsCommand::Show { version } => {
            let request = v1::GetModelVersionRequest { name: names::model(&version) };
            let version = server.models.get_model_version(remote.request(request)).await?.into_inner();
            let text = describe(&version)?;
            output::show(remote.json, &version, |_| text)?;
        }
        ModelsCommand::Promote { version, alias, expect } => {
            let model = promote(remote, &mut server, &version, &alias, expect.as_deref()).await?;
            output::show(remote.json, &model, |model| {
                format!("{}@{alias} is {}", model.name, model.aliases.get(&alias).map_or("", String::as_str))
            })?;
        }
        ModelsCommand::Load { version } => {
            let request = v1::LoadModelVersionRequest { name: names::model(&version) };
            let version = server.models.load_model_version(remote.request(request)).await?.into_inner();
            output::show(remote.json, &version, |version| format!("{} is loaded", version.name))?;
        }
        ModelsCommand::Unload { version } => {
            let request = v1::UnloadModelVersionRequest { name: names::model(&version) };
            let version = server.models.unload_model_version(remote.request(request)).await?.into_inner();
            output::show(remote.json, &version, |version| format!("{} is unloaded", version.name))?;
        }
        ModelsCommand::Delete { version } => {
            let name = names::model(&version);
            let request = v1::DeleteModelVersionRequest { name: name.clone() };
            server.models.delete_model_version(remote.request(request)).await?;
            output::deleted(remote.json, &name)?;
        }
        ModelsCommand::Import(import) => {
            let request = v1::ImportModelVersionRequest {
                parent: names::model(&import.model),
                weights_path: import.weights,
                architecture: v1::Architecture::from(import.architecture).into(),
                heads: import.heads.heads()?,
                image_size_px: import.image_size,
                detector: import.detector.as_deref().map(names::model).unwrap_or_default(),
                embedder: import.embedder.as_deref().map(names::model).unwrap_or_default(),
                licence: import.licence,
                source: import.source,
                request_id: String::new(),
            };
            let version = server.models.import_model_version(remote.request(request)).await?.into_inner();
            output::show(remote.json, &version, |version| format!("{} is imported", version.name))?;
        }
    }
    Ok(true)
}

/// Points an alias at a version, under a condition if one is given.
pub(super) async fn promote(
    remote: &Remote,
    server: &mut Clients,
    version: &str,
    alias: &str,
    expect: Option<&str>,
) -> anyhow::Result<v1::Model> {
    let version = names::model(version);
    let expected_version = expect.map(|e| if e == "none" { String::new() } else { names::model(e) });
    let request = v1::SetModelAliasRequest {
        name: names::model_of(&version).to_owned(),
        alias: alias.to_owned(),
        version,
        expected_version,
        request_id: String::new(),
    };
    Ok(server.models.set_model_alias(remote.request(request)).await?.into_inner())
}

async fn list(remote: &Remote, server: &Clients) -> anyhow::Result<()> {
    let models = pages::all(|page_token| async {
        let request = v1::ListModelsRequest { page_token, ..v1::ListModelsRequest::default() };
        let page = server.models.clone().list_models(remote.request(request)).await?.into_inner();
        Ok((page.models, page.next_page_token))
    })
    .await?;
    let row = |model: &v1::Model| {
        let aliases = model
            .aliases
            .iter()
            .map(|(alias, version)| format!("@{alias} {}", version.rsplit('/').next().unwrap_or_default()));
        let aliases = aliases.collect::<Vec<_>>().join(", ");
        [model.name.clone(), model.latest_version.to_string(), aliases, output::time(model.create_time.as_ref())]
    };
    let nothing = "no model yet; `visage train` creates the first version of one";
    output::show_all(remote.json, &models, ["model", "latest", "aliases", "created"], row, nothing)
}

async fn versions(remote: &Remote, server: &Clients, model: &str) -> anyhow::Result<()> {
    let parent = names::model(model);
    let versions = pages::all(|page_token| {
        let request = v1::ListModelVersionsRequest {
            parent: parent.clone(),
            page_token,
            ..v1::ListModelVersionsRequest::default()
        };
        async {
            let page = server.models.clone().list_model_versions(remote.request(request)).await?.into_inner();
            Ok((page.model_versions, page.next_page_token))
        }
    })
    .await?;
    let row = |version: &v1::ModelVersion| {
        [
            version.name.clone(),
            version.aliases.join(", "),
            load_state(version),
            metrics(version, ", "),
            output::time(version.create_time.as_ref()),
        ]
    };
    let headers = ["version", "aliases", "state", "figures", "created"];
    output::show_all(remote.json, &versions, headers, row, "no version")
}

fn load_state(version: &v1::ModelVersion) -> String {
    output::enum_name(version.load_state().as_str_name(), "LOAD_STATE_").to_lowercase()
}

fn metrics(version: &v1::ModelVersion, between: &str) -> String {
    version.metrics.iter().map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(between)
}

/// Lists a version's quality thresholds, one per line.
fn thresholds(reader: &v1::FaceReader) -> anyhow::Result<String> {
    let set = by_name(&reader.thresholds.unwrap_or_default())?;
    let lines = set.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Describes how a space's scores were calibrated.
fn calibration(identity: &v1::IdentityCalibration) -> String {
    let half = -identity.intercept / identity.slope;
    format!(
        "one person as likely as two at {half:.3}, by {} people ({} and {} pairs); false matches by {} photos\n{}",
        identity.n_people,
        identity.n_genuine_pairs,
        identity.n_impostor_pairs,
        identity.n_false_match_photos,
        identity.sample,
    )
}

fn describe(version: &v1::ModelVersion) -> anyhow::Result<String> {
    let origin = version.provenance.clone().unwrap_or_default();
    let architecture = output::enum_name(version.architecture().as_str_name(), "ARCHITECTURE_").to_lowercase();
    let heads = version.heads.iter().map(heads::describe).collect::<Vec<_>>().join(", ");
    let spaces = version.embedding_spaces.iter().map(|s| format!("{} ({})", s.name, s.dimensions)).collect::<Vec<_>>();
    let mebibytes = version.weight_bytes as f64 / f64::from(1 << 20);
    let rows = [
        ("version", version.name.clone()),
        ("aliases", version.aliases.join(", ")),
        ("state", load_state(version)),
        ("created", output::time(version.create_time.as_ref())),
        ("network", format!("{architecture}, {} px, {mebibytes:.1} MiB", version.image_size_px)),
        ("heads", heads),
        ("embedding spaces", spaces.join("\n")),
        ("figures", metrics(version, "\n")),
        ("trained by", origin.training_run),
        ("imported from", origin.imported_from),
        ("published as", origin.source),
        ("licence", origin.licence),
        ("reads faces by", version.face_reader.as_ref().map(|r| r.detector.clone()).unwrap_or_default()),
        ("paired with", version.face_reader.as_ref().map(|r| r.embedder.clone()).unwrap_or_default()),
        ("asks of a face", version.face_reader.as_ref().map(thresholds).transpose()?.unwrap_or_default()),
        ("scores mean", version.identity_calibration.as_ref().map(calibration).unwrap_or_default()),
        ("started from", origin.parent_version),
        ("data", origin.data_fingerprint),
        ("code", origin.code_version),
        ("digest", version.digest.clone()),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| [name.to_owned(), value]);
    Ok(output::facts(rows))
}
