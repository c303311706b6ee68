//! The command line.

mod eval;
mod evidence;
mod local;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{config, grpc, store, telemetry, training};

#[derive(Parser)]
struct Cli {
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve {
        #[arg(long)]
        listen: Option<String>,
    },
    Worker,
    Doctor,
    Eval(eval::EvalArgs),
}

/// Runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Worker) {
        return training::worker::main();
    }
    let result: anyhow::Result<bool> = (|| {
        let runtime = tokio::runtime::Runtime::new()?;
        match cli.command {
            Command::Serve { listen } => {
                let loaded = config::Config::load(
                    cli.config.as_deref(),
                    config::Flags::default().with("server.listen", listen),
                )?;
                telemetry::init(&loaded.config.log)?;
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::bind(loaded.config.server.listen).await?;
                    println!("listening on http://{}", listener.local_addr()?);
                    let shutdown = async {
                        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
                        term.recv().await;
                    };
                    grpc::run(loaded.config, listener, shutdown).await?;
                    Ok(true)
                })
            }
            Command::Doctor => {
                let loaded = config::Config::load(cli.config.as_deref(), config::Flags::default())?;
                let store = store::open(&loaded.config.data_dir.join("store"), &store::SledSettings::default())?;
                let report = store::examine(&store, |_, _| {})?;
                println!("{report:?}");
                Ok(report.findings.is_empty())
            }
            Command::Eval(args) => runtime.block_on(eval::run(args)),
            Command::Worker => Ok(false),
        }
    })();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
