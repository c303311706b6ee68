//! `visage runs`: training runs, present and past.

use clap::{Args, Subcommand};

use super::{
    connection::Remote,
    names, output, pages,
    watching::{OnInterrupt, ended, watch},
};
use crate::proto::{longrunning::CancelOperationRequest, v1};

/// Lists, shows, watches and cancels training runs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage runs list --model face
  visage runs watch 0190f0c4-7e1c-7d2e-8f5e-1f2a3b4c5d6e")]
pub(super) struct RunsArgs {
    #[command(subcommand)]
    command: RunsCommand,
    #[command(flatten)]
    pub(super) remote: Remote,
}

#[derive(Subcommand, Debug)]
enum RunsCommand {
    /// Lists the runs, the latest first.
    List {
        /// Only those of this model.
        #[arg(long, short, default_value = "")]
        model: String,
    },
    /// Shows a run.
    Show {
        /// Its id.
        run: String,
    },
    /// Follows a run from its beginning to its end; Ctrl-C leaves it running.
    Watch {
        /// Its id.
        run: String,
    },
    /// Cancels a run. Its weights are not kept.
    Cancel {
        /// Its id.
        run: String,
    },
}

/// Runs the command; returns false when a watched run did not succeed.
pub(super) async fn run(args: RunsArgs) -> anyhow::Result<bool> {
    let remote = &args.remote;
    let mut server = remote.connect().await?;
    match args.command {
        RunsCommand::List { model } => {
            let model = names::model(&model);
            let all = pages::all(|page_token| {
                let request = v1::ListTrainingRunsRequest { model: model.clone(), page_token, page_size: 0 };
                let (mut training, request) = (server.training.clone(), remote.request(request));
                async move {
                    let page = training.list_training_runs(request).await?.into_inner();
                    Ok((page.training_runs, page.next_page_token))
                }
            })
            .await?;
            let row = |run: &v1::TrainingRun| {
                let outcome = run.error.as_ref().map_or_else(|| run.version.clone(), |e| e.message.clone());
                [run.name.clone(), run.model.clone(), state(run), output::time(run.create_time.as_ref()), outcome]
            };
            let headers = ["run", "model", "state", "created", "outcome"];
            output::show_all(remote.json, &all, headers, row, "no run yet; `visage train` starts one")?;
            Ok(true)
        }
        RunsCommand::Show { run } => {
            let request = v1::GetTrainingRunRequest { name: names::run(&run) };
            let run = server.training.get_training_run(remote.request(request)).await?.into_inner();
            output::show(remote.json, &run, describe)?;
            Ok(true)
        }
        RunsCommand::Watch { run } => {
            let run = watch(remote, &mut server, &names::run(&run), OnInterrupt::Leave).await?;
            Ok(run.is_none_or(|run| run.state() == v1::RunState::Succeeded))
        }
        RunsCommand::Cancel { run } => {
            let name = names::run(&run);
            let request = CancelOperationRequest { name: names::operation(&name) };
            server.operations.cancel_operation(remote.request(request)).await?;
            let request = v1::GetTrainingRunRequest { name };
            let run = server.training.get_training_run(remote.request(request)).await?.into_inner();
            output::show(remote.json, &run, |run| format!("{} is being cancelled", run.name))?;
            Ok(true)
        }
    }
}

fn state(run: &v1::TrainingRun) -> String {
    output::enum_name(run.state().as_str_name(), "RUN_STATE_").to_lowercase()
}

fn describe(run: &v1::TrainingRun) -> String {
    let data = run.data.clone().unwrap_or_default();
    let progress = run.progress.as_ref().map(|p| {
        let rate = format!("{:.0} img/s", p.images_per_second);
        format!("epoch {}/{}, step {}/{}, loss {:.4}, {rate}", p.epoch, p.n_epochs, p.step, p.n_steps, p.loss)
    });
    let photos = format!("{} to train, {} to validate, {} to calibrate", data.train, data.valid, data.calibration);
    let rejected = data.rejected.iter().map(|(reason, n)| format!("{n} × {reason}")).collect::<Vec<_>>().join("\n");
    let rows = [
        ("run", run.name.clone()),
        ("model", run.model.clone()),
        ("state", state(run)),
        ("created", output::time(run.create_time.as_ref())),
        ("ended", output::time(run.end_time.as_ref())),
        ("photos", photos),
        ("left out", rejected),
        ("progress", progress.unwrap_or_default()),
        ("outcome", if run.end_time.is_some() { ended(run) } else { String::new() }),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| [name.to_owned(), value]);
    output::facts(rows)
}
