//! Measures how good and how fast this build of Visage is, and prints the results as rows of evidence.
//!
//! `eval` measures quality and `bench` speed, one module per suite. Every suite starts the server's program, which is
//! built into the same folder (`server.rs`, and `training_server.rs` for suites that train), and calls it over a real
//! port, as any client does. Most rows (`evidence.rs`) include a figure of the same run to compare with, often from a
//! Python program (`peers.rs`).

mod bench;
mod eval;
mod evidence;
mod peers;
mod server;
mod training_server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use visage::cli::failure;

/// Measures how good and how fast this build of Visage is.
#[derive(Parser, Debug)]
#[command(
    name = "visage-measure",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  make eval DATA=path/to/folder     # builds, fetches what is compared with, then runs every suite of quality
  make bench SUITE=serve            # likewise, one suite of speed

Exit codes: 0 done; 1 failed, or a bar missed; 2 the command line is wrong."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let reached = match Cli::parse().command {
        Command::Eval(args) => eval::run(args).await,
        Command::Bench(args) => bench::run(args).await,
    };
    match reached {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failure::report(&error, false).into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("visage-measure"), "visage-measure {} --help has no example", command.get_name());
        }
    }
}
