//! `visage config`: the effective configuration, and where each value came from.

use std::path::Path;

use clap::Args;

use super::{
    output::{self, print_line},
    serve::ServeArgs,
};
use crate::config::{Config, DOCUMENTED_DEFAULTS};

/// Prints the effective configuration and where each value came from.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage config --default > visage.toml     # every setting, documented
  visage --config visage.toml config        # what a server with this file would use")]
pub(super) struct ConfigArgs {
    /// Prints the documented file with every default instead.
    #[arg(long)]
    default: bool,
    /// Prints JSON, one setting per line.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Runs the command.
pub(super) fn run(args: &ConfigArgs, file: Option<&Path>) -> anyhow::Result<bool> {
    if args.default {
        print_line!("{}", DOCUMENTED_DEFAULTS.trim_end())?;
        return Ok(true);
    }
    let settings = Config::load(file, args.serve.flags())?.sources()?;
    if args.json {
        for setting in &settings {
            print_line!("{}", serde_json::to_string(setting)?)?;
        }
    } else {
        let rows = settings.into_iter().map(|s| [s.key, s.value, s.source]);
        print_line!("{}", output::table(["setting", "value", "from"], rows))?;
    }
    Ok(true)
}
