//! The command line, one file per command.
//!
//! Commands for a running server use only its gRPC API (`connection.rs`); those that open a data folder themselves are
//! in `data_folder.rs` and `backup.rs`. `output.rs` formats output, `failure.rs` error messages. The `pub` items below are shared with
//! the measuring program in `benches/`.

mod backup;
mod collections;
mod compare;
pub mod connection;
mod data_folder;
mod enroll;
mod erased;
mod face_options;
mod faces;
pub mod failure;
mod heads;
mod health;
mod models;
pub mod names;
pub mod output;
pub mod pages;
mod photo;
pub mod pictures;
mod predict;
mod runs;
mod serve;
mod settings;
mod signals;
mod similar;
mod train;
pub mod watching;
pub mod wording;

use std::{
    future::Future,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{config::LogConfig, telemetry, training};

/// Serves and trains models that read face photos.
#[derive(Parser, Debug)]
#[command(
    name = "visage",
    version,
    arg_required_else_help = true,
    after_help = "\
A first round, with a server of `make serve` in one terminal and the rest in another:
  visage predict portrait.jpg
  visage collections create policies
  visage enroll --collection policies portrait.jpg
  visage similar --collection policies portrait.jpg

Exit codes: 0 done; 1 refused, failed or damaged; 2 the command line is wrong; 3 no server answers."
)]
struct Cli {
    /// The server's configuration file.
    #[arg(long, global = true, env = "VISAGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::ServeArgs),
    Train(Box<train::TrainArgs>),
    Predict(predict::PredictArgs),
    Enroll(enroll::EnrollArgs),
    Similar(similar::SimilarArgs),
    Compare(compare::CompareArgs),
    Models(models::ModelsArgs),
    Runs(runs::RunsArgs),
    Collections(collections::CollectionsArgs),
    Faces(faces::FacesArgs),
    Health(health::HealthArgs),
    Doctor(data_folder::DoctorArgs),
    Migrate(data_folder::MigrateArgs),
    Compact(data_folder::CompactArgs),
    Rekey(data_folder::RekeyArgs),
    Export(backup::ExportArgs),
    Import(backup::ImportArgs),
    Config(settings::ConfigArgs),
    /// Prints a script that completes commands and options.
    #[command(after_help = "Example:\n  visage completions bash > ~/.local/share/bash-completion/completions/visage")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// The training process, started by a server.
    #[command(hide = true)]
    Worker,
}

impl Command {
    fn prints_json(&self) -> bool {
        match self {
            Self::Train(args) => args.remote.json,
            Self::Predict(args) => args.remote.json,
            Self::Enroll(args) => args.remote.json,
            Self::Similar(args) => args.remote.json,
            Self::Compare(args) => args.remote.json,
            Self::Models(args) => args.remote.json,
            Self::Runs(args) => args.remote.json,
            Self::Collections(args) => args.remote.json,
            Self::Faces(args) => args.remote.json,
            Self::Health(args) => args.remote.json,
            Self::Doctor(args) => args.folder.json,
            Self::Migrate(args) => args.folder.json,
            Self::Compact(args) => args.folder.json,
            Self::Rekey(args) => args.folder.json,
            Self::Export(args) => args.folder.json,
            Self::Import(args) => args.folder.json,
            Self::Config(args) => args.json,
            Self::Serve(_) | Self::Completions { .. } | Self::Worker => false,
        }
    }
}

/// Runs the command given by the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    signals::survive_file_size_limits();
    let cli = Cli::parse();
    if matches!(cli.command, Command::Worker) {
        // The server reads these lines and adds them to its own log.
        if let Err(error) = telemetry::init(&LogConfig::default()) {
            eprintln!("{error}");
        }
        return training::worker_main();
    }
    telemetry::quiet_guarded_panics();
    let json = cli.command.prints_json();
    let serves = matches!(cli.command, Command::Serve(_));
    let status = match run(cli) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) if is_closed_pipe(&error) => 0,
        Err(error) => failure::report(&error, json),
    };
    if serves {
        signals::leave(status);
    }
    ExitCode::from(status)
}

/// Runs a command; returns false for a negative answer, such as a finding.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let config = cli.config.as_deref();
    match cli.command {
        Command::Serve(args) => block_on(serve::run(args, config)),
        Command::Train(args) => block_on(train::run(*args)),
        Command::Predict(args) => block_on(predict::run(args)),
        Command::Enroll(args) => block_on(enroll::run(args)),
        Command::Similar(args) => block_on(similar::run(args)),
        Command::Compare(args) => block_on(compare::run(args)),
        Command::Models(args) => block_on(models::run(args)),
        Command::Runs(args) => block_on(runs::run(args)),
        Command::Collections(args) => block_on(collections::run(args)),
        Command::Faces(args) => block_on(faces::run(args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Doctor(args) => data_folder::doctor(&args, config),
        Command::Migrate(args) => data_folder::migrate(&args, config),
        Command::Compact(args) => data_folder::compact(&args, config),
        Command::Rekey(args) => data_folder::rekey(&args, config),
        Command::Export(args) => backup::export(&args, config),
        Command::Import(args) => backup::import(&args, config),
        Command::Config(args) => settings::run(&args, config),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "visage", &mut script);
            io::stdout().write_all(&script)?;
            Ok(true)
        }
        Command::Worker => Ok(true),
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    let done = runtime.block_on(command);
    // Does not wait for blocked work, such as a read that never completes.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Returns true if the reader of the output closed the pipe, like `head`: no failure. A broken connection to a server
/// looks alike.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let is_broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(is_broken))
        && !error.chain().any(|e| e.is::<tonic::Status>() || e.is::<tonic::transport::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_connection_that_breaks_is_no_closed_output() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&anyhow::Error::from(broken()).context("writing the answer")));
        let status = tonic::Status::from_error(Box::new(broken()));
        assert!(!is_closed_pipe(&anyhow::Error::from(status).context("a.jpg")));
    }

    #[test]
    fn every_command_teaches_with_an_example() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("visage"), "visage {} --help has no example", command.get_name());
        }
    }
}
